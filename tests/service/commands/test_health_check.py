"""What the image's HEALTHCHECK runs, against servers on the loopback."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from foldserve.service.commands.health_check import _connections, ask
from tests.deploy.support import ROOT
from tests.service.support import app_of, running

READY = "/v2/health/ready"


@contextlib.contextmanager
def answering(listener: socket.socket, status: bytes = b"200 OK") -> Iterator[None]:
    """One request is answered on this socket."""

    def answer() -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 %b\r\nContent-Length: 5\r\n\r\nhello" % status)

    with listener:
        thread = threading.Thread(target=answer)
        thread.start()
        yield
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def environ(listener: socket.socket, host: str | None) -> dict[str, str]:
    found = {"FOLDSERVE_PORT": str(listener.getsockname()[1])}
    return found if host is None else {**found, "FOLDSERVE_HOST": host}


@pytest.mark.parametrize(
    "host", [None, "0.0.0.0", "::", "[::]", "127.0.0.1", "localhost", "127.0.0.1,unix:/x"]
)
def test_server_on_ipv4_is_found_however_its_host_is_written(host: str | None) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with answering(listener):
        assert ask(READY, environ(listener, host)) == 0


@pytest.mark.parametrize("host", [None, "0.0.0.0", "::", "::1", "[::1]"])
def test_server_on_ipv6_alone_is_found(host: str | None) -> None:
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with answering(listener):
        assert ask(READY, environ(listener, host)) == 0


def test_server_on_a_socket_in_the_file_system_is_found(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    with answering(listener):
        assert ask(READY, {"FOLDSERVE_HOST": f"unix:{tmp_path}/s"}) == 0


def test_server_that_is_not_ready_is_told_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with answering(listener, b"503 Service Unavailable"):
        assert ask(READY, environ(listener, None)) == 1
    assert "503: hello" in capsys.readouterr().err


def test_no_server_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        where = environ(listener, "127.0.0.1")
    assert ask(READY, where) == 1
    assert "cannot be reached" in capsys.readouterr().err


def test_a_link_of_kubernetes_is_no_port() -> None:
    assert {place.port for place in _connections({"FOLDSERVE_PORT": "tcp://10.0.0.1:80"})} == {8000}


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_command_of_the_image_asks_the_server_and_no_proxy(variable: str) -> None:
    line = next(line for line in (ROOT / "Dockerfile").read_text().splitlines() if "health_check" in line)
    command = json.loads(line.partition("CMD ")[2])
    with running(app_of()) as port:
        done = subprocess.run(
            [sys.executable, *command[1:]],
            cwd=ROOT,
            env={**os.environ, variable: "http://127.0.0.1:1", "FOLDSERVE_PORT": str(port)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (0, "")
