"""Programs of this folder, each in a process of its own: their records as they come, an end when they take too long."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.gpu.records import Failure, Record, from_line
from benchmarks.serving.workloads import ROOT


def environment(names: Sequence[str] | None = None) -> dict[str, str]:
    """Of this process's environment those variables, or all; and a path on which the checkout comes last.

    So a compiled foldserve that PYTHONPATH names is the one that is measured.
    """
    given = (
        dict(os.environ)
        if names is None
        else {name: os.environ[name] for name in names if name in os.environ}
    )
    path = [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), str(ROOT)]
    return {**given, "PYTHONPATH": os.pathsep.join(path)}


def records(what: str, module: str, argument: str, log: Path, limit_s: float) -> Iterator[Record]:
    """Run a module and yield what it prints; a failure in addition when it ends badly or takes too long.

    Args:
        what: what it measures, for the failure. log: gets its stderr.
    """
    command = [sys.executable, "-P", "-m", module, argument]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=errors, text=True
        )
    late = threading.Event()

    def end_late() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(limit_s, end_late)
    timer.start()
    with process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith('{"kind":'):  # libraries may print too
                    yield from_line(line)
            process.wait()
        finally:
            timer.cancel()
            process.kill()  # when nobody wants the rest
    if late.is_set():
        yield Failure(what, f"took longer than {limit_s:g} s")
    elif process.returncode:
        yield Failure(
            what, f"ended with {process.returncode}: {log.read_text(errors='replace')[-1500:].strip()}"
        )
