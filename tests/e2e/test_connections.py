"""Connections to whole servers: spread over API servers, over few descriptors, at all kinds of addresses."""

import contextlib
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from foldserve.service.cli import main
from tests.e2e.server_process import START_LIMIT_S, ServerProcess, serving, wait_gone
from tests.faults.support import client_ports
from tests.service.repositories import save_linear

API_SERVERS = 4
ASK = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    save_linear(folder / "linear" / "1" / "model.onnx")
    return folder


def port_of(server: ServerProcess) -> int:
    return int(server.url.rpartition(":")[2])


class Clients:
    """Connections that are held open."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.sockets: list[socket.socket] = []

    def open(self, count: int, pause_s: float = 0.0) -> None:
        for _ in range(count):
            self.sockets.append(socket.create_connection(("127.0.0.1", self._port), timeout=START_LIMIT_S))
            time.sleep(pause_s)  # how quickly they come is what is tried here; nothing is waited for

    def ask(self) -> list[int]:
        """Ask on each; the statuses of those that are answered."""
        found = []
        for one in self.sockets:
            with contextlib.suppress(OSError):
                one.sendall(ASK)
                answer = b""
                while not answer.endswith(b"}") and (some := one.recv(4096)):
                    answer += some
                if answer:
                    found.append(int(answer.split(b" ")[1]))
        return found

    def close(self) -> None:
        for one in self.sockets:
            one.close()
        self.sockets.clear()

    def by_api_server(self, server: ServerProcess) -> list[int]:
        """How many of them each API server has."""
        own = {one.getsockname()[1] for one in self.sockets}
        return [len(client_ports(pid) & own) for pid in server.api_servers()]


@contextlib.contextmanager
def clients(server: ServerProcess) -> Iterator[Clients]:
    made = Clients(port_of(server))
    try:
        yield made
    finally:
        made.close()


def test_connections_are_spread_evenly_however_they_come_and_also_after_an_api_server_was_killed(
    repository: Path, tmp_path: Path
) -> None:
    with serving(repository, tmp_path / "log", "--api-servers", str(API_SERVERS)) as server:
        server.wait_until("/v2/health/ready", 200)
        for count, pause_s in ((64, 0.0), (8, 0.0), (256, 0.0), (64, 0.005)):
            most = sorted(_most_of_one(server, count, pause_s) for _ in range(5))
            # The middle of five: one that gets no processor for 20 ms is left out, as one that is stopped is.
            assert most[2] <= 1.5 * count / API_SERVERS, (count, pause_s, most)
        with clients(server) as made:
            made.open(64)
            made.ask()
            (first, *_) = before = server.api_servers()
            left = 64 - made.by_api_server(server)[0]
            os.kill(first, signal.SIGKILL)
            wait_gone([first])
            assert len(made.ask()) == left
            made.open(16)  # what comes while the next one starts is answered by the others
            assert len(made.ask()) == left + 16
            server.until(lambda: len(set(server.api_servers()) - set(before)) == 1)
            # The new one has fewest: it is given what comes now.
            server.until(lambda: _gets_one(made, server))
            made.open(64)
            made.ask()
            held = made.by_api_server(server)
            assert max(held) <= 1.5 * sum(held) / API_SERVERS, held


def _most_of_one(server: ServerProcess, count: int, pause_s: float) -> int:
    """Open that many connections, all are answered; how many the API server with most of them has."""
    with clients(server) as made:
        made.open(count, pause_s)
        assert made.ask() == [200] * count
        held = made.by_api_server(server)
        assert sum(held) == count
        ports = {one.getsockname()[1] for one in made.sockets}
    server.until(lambda: not any(client_ports(pid) & ports for pid in server.api_servers()))
    return max(held)


def _gets_one(made: Clients, server: ServerProcess) -> bool:
    """Whether each API server has some of the connections once one more has come."""
    made.open(1)
    made.ask()
    return min(made.by_api_server(server)) > 0


def test_stopped_api_server_keeps_no_connection_waiting(repository: Path, tmp_path: Path) -> None:
    with serving(repository, tmp_path / "log", "--api-servers", "2") as server:
        server.wait_until("/v2/health/ready", 200)
        stopped = server.api_servers()[0]
        os.kill(stopped, signal.SIGSTOP)
        try:
            with clients(server) as made:
                made.open(50)
                assert made.ask() == [200] * 50
        finally:
            os.kill(stopped, signal.SIGCONT)


# Few descriptors ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def limited_to(soft: int, hard: int) -> Iterator[None]:
    """What is started inside has these limits on open files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    script = f"ulimit -Sn {soft}; ulimit -Hn {hard}"
    real = subprocess.Popen

    class Limited(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, command: list[object], **named: object) -> None:
            super().__init__(["sh", "-c", f'{script}; exec "$@"', "sh", *map(str, command)], **named)  # type: ignore[call-overload]

    subprocess.Popen = Limited  # type: ignore[misc]
    try:
        yield
    finally:
        subprocess.Popen = real  # type: ignore[misc]
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


def test_server_with_too_few_descriptors_serves_those_it_has_tells_the_others_and_answers_health(
    repository: Path, tmp_path: Path
) -> None:
    with limited_to(192, 192), serving(repository, tmp_path / "log") as server:
        server.wait_until("/v2/health/ready", 200)
        assert "fewer than its --max-in-flight 4096" in server.output
        with clients(server) as made:
            made.open(300)
            for path in ("/v2/health/live", "/v2/health/ready", "/health", "/metrics"):
                assert server.get(path).status_code == 200, path
            refused = server.get("/info")
            assert (refused.status_code, refused.json()["code"]) == (503, "too_many_connections")
            answered = made.ask()
            assert answered.count(200) >= 20
            assert set(answered) <= {200, 503}
            assert server.metric("foldserve_connections_refused_total", reason="crowded") >= 200
            assert server.output.count("foldserve.connections") == 1
        server.until(lambda: server.get("/info").status_code == 200)
        assert server.end(signal.SIGTERM) == 0


def test_soft_limit_is_no_limit(repository: Path, tmp_path: Path) -> None:
    with limited_to(64, 4096), serving(repository, tmp_path / "log", "--max-in-flight", "1000") as server:
        server.wait_until("/v2/health/ready", 200)
        with clients(server) as made:
            made.open(200)
            assert made.ask() == [200] * 200
        assert "ulimit" not in server.output


@pytest.mark.parametrize(("models", "limit"), [(1, 40), (300, 400)])
def test_limit_that_is_too_low_for_the_processes_is_told_in_one_line_and_ends_with_2(
    models: int, limit: int, repository: Path, tmp_path: Path
) -> None:
    for number in range(1, models):
        shutil.copytree(repository / "linear", repository / f"linear{number}")
    with limited_to(limit, limit), serving(repository, tmp_path / "log") as server:
        assert server.process.wait(START_LIMIT_S) == 2
        assert "Traceback" not in server.output
        assert re.search(
            rf"the limit of {limit} open files is too low for {models + 16} model versions .*--max-models.*ulimit -n",
            server.output,
        )


# Addresses --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def served_at(repository: Path, output: Path, *options: str) -> Iterator[Callable[[], str]]:
    """A server with these options and no others; yields what tells its output."""
    command = [Path(sysconfig.get_path("scripts")) / "foldserve", "serve", str(repository), "--device", "cpu"]
    with output.open("wb") as file:
        process = subprocess.Popen([*command, *options], stdout=file, stderr=file, start_new_session=True)
    try:
        until_s = time.monotonic() + START_LIMIT_S
        while "POST /predict" not in output.read_text():
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < until_s, output.read_text()
            time.sleep(0.02)  # between two looks
        yield output.read_text
        process.send_signal(signal.SIGTERM)
        assert process.wait(START_LIMIT_S) == 0
    finally:
        process.kill()
        process.wait()


def test_port_0_is_a_free_one_that_the_printed_url_has(repository: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 4), "f4"))
    with served_at(repository, tmp_path / "log", "--port", "0") as output:
        found = re.search(r"serves (http://127\.0\.0\.1:\d+) on cpu", output())
        assert found
        assert main(["predict", found[1], "linear", str(tmp_path / "x.npy")]) == 0


def test_socket_in_the_file_system_serves_is_removed_at_the_end_and_replaced_after_a_kill(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 4), "f4"))
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    host = f"unix:{path}"
    with served_at(repository, tmp_path / "log", "--host", host, "--api-servers", "2") as output:
        assert f"serves {host} on cpu" in output()
        for _ in range(10):
            assert main(["predict", host, "linear", str(tmp_path / "x.npy")]) == 0
        assert main(["serve", str(repository), "--device", "cpu", "--host", host]) == 2
        assert "a server listens there" in capsys.readouterr().err
    assert not path.exists()
