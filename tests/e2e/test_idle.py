"""A server with nothing to do does nothing."""

import contextlib
import time
from pathlib import Path

import httpx
import pytest

from tests.e2e.server_process import ServerProcess, serving
from tests.service.repositories import save_linear, save_lookup

pytestmark = pytest.mark.e2e

IDLE_S = 5.0


def used(server: ServerProcess) -> tuple[float, int]:
    """Seconds of CPU, and how often any thread went to sleep, over all threads of all processes."""
    nanoseconds = sleeps = 0
    for pid in server.processes():
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # the thread has ended
                nanoseconds += int((task / "schedstat").read_text().split()[0])
                status = (task / "status").read_text()
                sleeps += int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return nanoseconds / 1e9, sleeps


def test_three_loaded_models_idle_below_a_hundredth_of_a_core_and_nothing_polls(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for name in ("first", "second"):
        save_linear(repository / name / "1" / "model.onnx")
    save_lookup(repository / "lookup" / "1" / "model.onnx")
    with serving(repository, tmp_path / "output", "--api-servers", "2") as running:
        running.wait_until("/v2/health/ready", 200)
        with httpx.Client(base_url=running.url) as client:
            for name in ("first", "second"):  # it has served, and a connection stays open
                assert client.post(f"/predict/{name}", json={"inputs": [[1, 2, 3, 4]]}).is_success
            # After the last answer there is a little left to do: the timer that looks at deadlines runs out.
            cpu_s, sleeps = used(running)
            for _ in range(10):
                time.sleep(0.5)
                before, (cpu_s, sleeps) = sleeps, used(running)
                if sleeps == before:
                    break
            assert (cpu_s > 0.1, sleeps > 10) == (True, True)  # it was counted: loading alone took more
            time.sleep(IDLE_S)
            later_s, later_sleeps = used(running)
            processes = len(running.processes())
        assert later_s - cpu_s < 0.01 * IDLE_S
        # One thread that polls ten times a second would make 50. The supervisor asks each process whether it is alive
        # every 15 s (--run-limit / 4), which may fall into this time.
        assert later_sleeps - sleeps < 5 + 2 * processes
