"""Compiles the way of a request with mypyc into a wheel, where that can be; everything else is in pyproject.toml.

The modules below are ordinary Python and run as they are; compiled, a request costs about a quarter less CPU
(benchmarks/README.md). `pip install .` compiles where a C compiler works, and otherwise says why not and goes on.
COMPILE_FOLDSERVE=1 (`make wheel`, the Dockerfile) fails where it cannot, COMPILE_FOLDSERVE=0 never compiles. Nor does
an editable install: a compiled module would hide what is edited. `compiled` in /info and in the server's first line
tells which of the two is running.

mypyc checks types at run time, so `make compiled` tests whole servers against the compiled wheel.
"""

import os
import sys
import tempfile
from pathlib import Path

from setuptools import Distribution, Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

COMPILED = (
    "foldserve/service/access/gate.py",
    "foldserve/service/access/keyring.py",
    "foldserve/service/access/quotas.py",
    "foldserve/service/engine/admission.py",
    "foldserve/service/repository/buckets.py",
    "foldserve/service/codecs/fast/codec.py",
    "foldserve/service/codecs/fast/json_rows.py",
    "foldserve/service/codecs/fast/packer.py",
    "foldserve/service/codecs/fast/repeat_cache.py",
    "foldserve/service/codecs/fast/tensor_body.py",
    "foldserve/service/engine/callers.py",
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
    "foldserve/service/inference/parsing.py",
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
    "foldserve/service/engine/queue_level.py",
    "foldserve/service/engine/request.py",
    "foldserve/service/ipc/slots/allocator.py",
    "foldserve/service/ipc/records.py",
    "foldserve/service/ipc/slots/slot_pool.py",
    "foldserve/service/engine/watchdog.py",
    "foldserve/service/worker/ageing.py",
    "foldserve/service/worker/batcher.py",
    "foldserve/service/worker/device_gate.py",
    "foldserve/service/worker/batches/gather.py",
    "foldserve/service/worker/instance_loop.py",
    "foldserve/service/worker/batches/batch_runner.py",
    "foldserve/service/worker/batches/pieces.py",
    "foldserve/service/worker/ticket_consumer.py",
    "foldserve/service/worker/times.py",
    "foldserve/service/worker/turn.py",
)
"""What runs for every request. Not here: classes that travel to a spawned process (compiled ones cannot be pickled),
and subclasses of other packages' classes."""


class CannotCompile(Exception):
    """Why not, and what to do about it."""


class Wheel(bdist_wheel):
    """Compiles before anything else is done: a wheel for which that fails is an ordinary one, with nothing of it."""

    def run(self) -> None:
        wanted = os.environ.get("COMPILE_FOLDSERVE") or None
        if wanted not in (None, "0", "1"):
            sys.exit(
                f"COMPILE_FOLDSERVE is {wanted!r}; expected 1 (compile or fail) or 0 (do not compile); "
                "unset it to compile where that can be"
            )
        # Aside: what an earlier build left in build/ would come into the wheel, and two builds would share it.
        with tempfile.TemporaryDirectory(prefix="foldserve-wheel-") as folder:
            self.bdist_dir = f"{folder}/unpacked"
            self._build_in(f"{folder}/ordinary", [])
            if wanted != "0":
                try:
                    self._compile(Path(folder))
                except CannotCompile as reason:
                    if wanted == "1":
                        sys.exit(f"foldserve cannot be compiled: {reason}")
                    print(
                        f"\nWARNING: foldserve is NOT compiled: {reason}\n"
                        "It works all the same; a request costs about a third more CPU.\n",
                        file=sys.stderr,
                    )
                    self._build_in(f"{folder}/ordinary", [])
            super().run()

    def _build_in(self, folder: str, extensions: list[Extension]) -> None:
        """Have the build begin anew, there, with these."""
        self.distribution.ext_modules = extensions
        self.root_is_pure = not extensions
        self.reinitialize_command("build", reinit_subcommands=True).build_base = folder
        self.reinitialize_command("build_ext")

    def _compile(self, folder: Path) -> None:
        """Raises CannotCompile."""
        try_compiler(folder)
        try:
            self._build_in(f"{folder}/compiled", mypyc_extensions(folder))
            self.run_command("build_ext")
        except (Exception, SystemExit) as error:  # mypyc exits
            raise CannotCompile(f"compiling it failed ({error}); what was said is above") from error


class CompiledModules(build_ext):
    """Of generated sources, which are no part of foldserve's own."""

    def get_source_files(self) -> list[str]:
        return []


def try_compiler(folder: Path) -> None:
    """Raises CannotCompile where a C compiler or Python's headers are missing; mypyc would tell after half a minute."""
    source = folder / "probe.c"
    source.write_text("#include <Python.h>\nPyMODINIT_FUNC PyInit_probe(void) { return NULL; }\n")
    probe = build_ext(Distribution({"ext_modules": [Extension("probe", [str(source)])]}))
    probe.build_lib = probe.build_temp = str(folder)
    try:
        probe.ensure_finalized()
        probe.run()
    except Exception as error:
        raise CannotCompile(
            f"no C compiler with Python's headers works here ({error}); install them (Debian, Ubuntu: "
            "apt-get install gcc libc6-dev python3-dev) and install foldserve again"
        ) from error


def mypyc_extensions(folder: Path) -> list[Extension]:
    """What COMPILED becomes: one library of them all and, for each, a module that leads there."""
    from mypyc.build import mypycify

    # The package names the export's types too: the compiler need not read all of torch for them.
    types = folder / "mypy.ini"
    types.write_text(
        "[mypy]\nignore_missing_imports = True\n[mypy-foldserve.models.*]\nfollow_imports = skip\n"
    )
    # The library is beside them, in the package: by itself it would lie on the import path.
    return mypycify(
        [f"--config-file={types}", *COMPILED],
        opt_level="3",
        target_dir=str(folder),
        group_name="foldserve.service",
    )


setup(cmdclass={"bdist_wheel": Wheel, "build_ext": CompiledModules})
