"""Compiles the way of a request with mypyc when COMPILE_FOLDSERVE=1; everything else is in pyproject.toml.

The modules below are ordinary Python and run as they are; compiled, a request costs about a quarter less CPU
(benchmarks/README.md). `make wheel` and the Dockerfile compile. An editable install does not: a compiled module would
hide what is edited. mypyc checks types at run time, so `make compiled` tests whole servers against the compiled wheel.
"""

import os

from setuptools import setup

COMPILED = (
    "service/admission.py",
    "service/body.py",
    "service/buckets.py",
    "service/codecs/json_quick.py",
    "service/dispatch.py",
    "service/dispatch_engine.py",
    "service/fastpath/answer_lines.py",
    "service/fastpath/exchange.py",
    "service/fastpath/head_reader.py",
    "service/fastpath/heads.py",
    "service/fastpath/unread.py",
    "service/forecast.py",
    "service/holdings.py",
    "service/receiving.py",
    "service/request_ring.py",
    "service/room.py",
    "service/ticketed.py",
    "service/transport/extents.py",
    "service/transport/records.py",
    "service/transport/slots.py",
    "service/watch.py",
    "service/worker/collect.py",
    "service/worker/gate.py",
    "service/worker/gather.py",
    "service/worker/loop.py",
    "service/worker/run.py",
    "service/worker/take.py",
    "service/worker/times.py",
    "service/worker/turn.py",
)
"""What runs for every request. Not here: classes that travel to a spawned process (compiled ones cannot be pickled),
and subclasses of other packages' classes."""

extensions = []
if os.environ.get("COMPILE_FOLDSERVE") == "1":
    from mypyc.build import mypycify

    extensions = mypycify(list(COMPILED), opt_level="3")

setup(ext_modules=extensions)
