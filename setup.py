"""Compiles the way of a request with mypyc when COMPILE_FOLDSERVE=1; everything else is in pyproject.toml.

The modules below are ordinary Python and run as they are; compiled, a request costs about a quarter less CPU
(benchmarks/README.md). `make wheel` and the Dockerfile compile. An editable install does not: a compiled module would
hide what is edited. mypyc checks types at run time, so `make compiled` tests whole servers against the compiled wheel.
"""

import os

from setuptools import setup

COMPILED = (
    "service/engine/admission.py",
    "service/repository/buckets.py",
    "service/codecs/json_fast.py",
    "service/engine/dispatcher.py",
    "service/frontend/http1/answer_lines.py",
    "service/frontend/http1/exchange.py",
    "service/frontend/http1/heads/reader.py",
    "service/frontend/http1/heads/cache.py",
    "service/frontend/http1/flow/unread.py",
    "service/ipc/run_time.py",
    "service/inference/body_budget.py",
    "service/inference/holdings.py",
    "service/inference/observers.py",
    "service/inference/partial_body.py",
    "service/inference/plan.py",
    "service/inference/receiving.py",
    "service/inference/request.py",
    "service/inference/response.py",
    "service/inference/server_context.py",
    "service/metrics/request_ring.py",
    "service/engine/room.py",
    "service/engine/model_queue.py",
    "service/engine/request.py",
    "service/ipc/slots/allocator.py",
    "service/ipc/records.py",
    "service/ipc/slots/slot_pool.py",
    "service/engine/watchdog.py",
    "service/worker/collect.py",
    "service/worker/gate.py",
    "service/worker/batches/gather.py",
    "service/worker/batcher.py",
    "service/worker/batches/batch_runner.py",
    "service/worker/batches/pieces.py",
    "service/worker/dequeue.py",
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
