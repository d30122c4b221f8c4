"""Every benchmark that `make bench` and `make soak` can start tells its options."""

import subprocess
import sys

import pytest

WHAT = [
    "fold",
    "export",
    "serve",
    "peers",
    "oip_peers",
    "heads",
    "protocols",
    "stall",
    "priority",
    "scrapes",
    "gpu",
    "soak",
    "published",
]
# Each as `python -m` runs it; one after the other in one process, as all import the same large libraries.
EACH = """
import runpy, sys
for what in sys.argv[1:]:
    sys.argv = [what, "--help"]
    sys.modules.pop(f"benchmarks.{what}", None)  # another one may have imported it
    print("benchmark", what, flush=True)
    try:
        runpy.run_module(f"benchmarks.{what}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        print("ended with", end.code, flush=True)
"""


@pytest.fixture(scope="module")
def told() -> dict[str, str]:
    """What each benchmark prints, by its name."""
    done = subprocess.run([sys.executable, "-c", EACH, *WHAT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    parts = (part.partition("\n") for part in done.stdout.split("benchmark ")[1:])
    return {name: text for name, _, text in parts if name in WHAT}


@pytest.mark.parametrize("what", WHAT)
def test_benchmark_tells_its_options(what: str, told: dict[str, str]) -> None:
    assert "--help" in told[what]
    assert told[what].endswith("ended with 0\n")
