"""Whether `make compiled` tests what it says: the other tests here cannot tell compiled servers from ordinary ones."""

import os
from pathlib import Path

import pytest

from tests.e2e.server_process import serving
from tests.service.repositories import save_linear

COMPILED = Path(__file__).parents[2] / "build" / "compiled"


@pytest.mark.e2e
@pytest.mark.skipif(
    str(COMPILED) not in os.environ.get("PYTHONPATH", "").split(os.pathsep),
    reason="these servers run the sources; `make compiled` tests the compiled wheel",
)
def test_api_server_and_worker_run_the_compiled_modules(tmp_path: Path) -> None:
    save_linear(tmp_path / "repository" / "linear" / "1" / "model.onnx")
    with serving(tmp_path / "repository", tmp_path / "output") as running:
        running.wait_until("/v2/health/ready", 200)
        assert running.get("/info").json()["compiled"] is True
        running.until(lambda: "(compiled: true)" in running.output)
        (worker,) = running.workers()
        (front,) = running.api_servers()
        for pid in (worker, front):
            # One library holds them all; the modules' own files only lead to it.
            maps = Path(f"/proc/{pid}/maps").read_text()
            assert any(str(COMPILED) in line and "__mypyc." in line for line in maps.splitlines())
