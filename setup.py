"""Compiles the way of a request with mypyc when COMPILE_FOLDSERVE=1; everything else is in pyproject.toml.

The modules below are ordinary Python and run as they are; compiled, a request costs about a quarter less CPU
(benchmarks/README.md). `make wheel` and the Dockerfile compile. An editable install does not: a compiled module would
hide what is edited. mypyc checks types at run time, so `make compiled` tests whole servers against the compiled wheel.
"""

import os
import tempfile
from pathlib import Path

from setuptools import setup

COMPILED = (
    "foldserve/service/engine/admission.py",
    "foldserve/service/repository/buckets.py",
    "foldserve/service/codecs/fast_codec.py",
    "foldserve/service/codecs/json_fast.py",
    "foldserve/service/codecs/repeat_cache.py",
    "foldserve/service/engine/dispatcher.py",
    "foldserve/service/engine/memory/arena_memory.py",
    "foldserve/service/engine/queue_load.py",
    "foldserve/service/frontend/http1/response_lines.py",
    "foldserve/service/frontend/http1/exchange.py",
    "foldserve/service/frontend/http1/heads/reader.py",
    "foldserve/service/frontend/http1/heads/cache.py",
    "foldserve/service/frontend/http1/flow/send_buffers.py",
    "foldserve/service/ipc/run_time.py",
    "foldserve/service/inference/body_budget.py",
    "foldserve/service/inference/holdings.py",
    "foldserve/service/inference/observers.py",
    "foldserve/service/inference/partial_body.py",
    "foldserve/service/inference/plan.py",
    "foldserve/service/inference/receiving.py",
    "foldserve/service/inference/request.py",
    "foldserve/service/inference/response.py",
    "foldserve/service/inference/server_context.py",
    "foldserve/service/metrics/request_ring.py",
    "foldserve/service/protocols/oip/fast.py",
    "foldserve/service/engine/memory/output_sizes.py",
    "foldserve/service/engine/model_queue.py",
    "foldserve/service/engine/request.py",
    "foldserve/service/ipc/slots/allocator.py",
    "foldserve/service/ipc/records.py",
    "foldserve/service/ipc/slots/slot_pool.py",
    "foldserve/service/engine/watchdog.py",
    "foldserve/service/worker/batcher.py",
    "foldserve/service/worker/gate.py",
    "foldserve/service/worker/batches/gather.py",
    "foldserve/service/worker/instance_loop.py",
    "foldserve/service/worker/batches/batch_runner.py",
    "foldserve/service/worker/batches/pieces.py",
    "foldserve/service/worker/dequeue.py",
    "foldserve/service/worker/times.py",
    "foldserve/service/worker/turn.py",
)
"""What runs for every request. Not here: classes that travel to a spawned process (compiled ones cannot be pickled),
and subclasses of other packages' classes."""

extensions = []
if os.environ.get("COMPILE_FOLDSERVE") == "1":
    from mypyc.build import mypycify

    with tempfile.TemporaryDirectory() as folder:
        # The package names the export's types too: the compiler need not read all of torch for them.
        types = Path(folder) / "mypy.ini"
        types.write_text(
            "[mypy]\nignore_missing_imports = True\n[mypy-foldserve.models.*]\nfollow_imports = skip\n"
        )
        # The library of them all is beside them, in the package: by itself it would lie on the import path.
        extensions = mypycify(
            [f"--config-file={types}", *COMPILED], opt_level="3", group_name="foldserve.service"
        )

setup(ext_modules=extensions)
