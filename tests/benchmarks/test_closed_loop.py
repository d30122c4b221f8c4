"""The closed-loop generator keeps its connections busy, waits for the last answers, and tells answers apart."""

import shutil
import socket
import threading
from pathlib import Path

import pytest

from benchmarks.serving import closed_loop
from benchmarks.serving.closed_loop import ClosedLoad, Shape
from benchmarks.serving.servers import Request, free_port
from tests.benchmarks.conftest import PostServer

LINE = (
    "FIGURES ok=60 ok_in_time=55 refused=38 failed=1 unanswered=1 seconds=2.000 p50_ms=1.250 p99_ms=9.000 "
    "max_ms=11.500 cpu_s=0.125\n"
)
REQUEST = Request("/x", {"Content-Type": "a/b"}, bytes(200_000))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    return closed_loop.build(tmp_path_factory.mktemp("generator"))


def test_the_generators_line_is_read() -> None:
    assert closed_loop.parse(LINE) == ClosedLoad(60, 55, 38, 1, 1, 2.0, 1.25, 9.0, 11.5, 0.125)


def test_every_request_is_whole_and_is_answered_before_the_next(program: Path, posts: PostServer) -> None:
    load = closed_loop.run(program, posts.port, REQUEST, Shape(connections=5, threads=2, seconds=1.5))
    assert load.ok + load.refused == len(posts.seen) > 5
    assert abs(load.ok - load.refused) <= 1  # the server refuses every second one
    assert (load.failed, load.unanswered) == (0, 0)
    assert {len(body) for _, body in posts.seen} == {200_000}
    assert 0 < load.p50_ms <= load.p99_ms <= load.max_ms
    # Five are under way when the time is over, and only those end after it; some of them are refused.
    assert 0 < load.ok_in_time <= load.ok <= load.ok_in_time + 5
    assert load.cpu_s > 0


def test_there_are_as_many_threads_as_connections_at_most(program: Path, posts: PostServer) -> None:
    load = closed_loop.run(program, posts.port, REQUEST, Shape(connections=1, threads=8, seconds=1.0))
    assert load.ok + load.refused == len(posts.seen) > 0


class Silent(threading.Thread):
    """Takes connections, and breaks the first `broken` of them; the others never have an answer."""

    def __init__(self, broken: int) -> None:
        super().__init__(daemon=True)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._broken = broken
        self.port: int = self._listener.getsockname()[1]
        self.start()

    def run(self) -> None:
        held = []
        while True:
            connection, _ = self._listener.accept()
            if self._broken:
                self._broken -= 1
                connection.close()
            else:
                held.append(connection)


def test_broken_connections_have_failed_and_others_take_their_place(program: Path) -> None:
    shape = Shape(connections=2, threads=1, seconds=2.0, patience_s=0.1)
    load = closed_loop.run(program, Silent(broken=3).port, REQUEST, shape)
    assert (load.ok, load.failed, load.unanswered) == (0, 3, 2)


def test_a_server_that_is_not_there_is_told(program: Path) -> None:
    with pytest.raises(RuntimeError, match=r"ended with 1: connect: Connection refused"):
        closed_loop.run(program, free_port(), REQUEST, Shape(connections=1, threads=1, seconds=0.1))
