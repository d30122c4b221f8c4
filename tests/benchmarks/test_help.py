"""Every benchmark that `make bench` and `make soak` can start tells its options."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "what", ["fold", "export", "serve", "peers", "heads", "stall", "scrapes", "gpu", "soak", "published"]
)
def test_benchmark_tells_its_options(what: str) -> None:
    told = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{what}", "--help"], capture_output=True, text=True, check=False
    )
    assert (told.returncode, told.stderr) == (0, "")
    assert "--help" in told.stdout
