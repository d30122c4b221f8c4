"""The end of a server under load: who asks without a pause, on connections that are used again, loses no request.

Counted are the requests that were sent before the grace was over, whoever was to close the connection.
"""

import asyncio
import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.e2e.server_process import ServerProcess, free_port, serving
from tests.faults.support import LIMIT_S, Caller, make_repository, until

pytestmark = pytest.mark.e2e

CLIENTS = 64
ROW = [1.0, 2.0, 3.0, 4.0]


class Asking:
    """Clients that ask again and again; each opens a connection anew when an answer closes the old one."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answered = 0
        self.closed = 0
        self.lost_s: list[float] = []
        """When the requests were sent that got no answer of the server's."""
        self.done = False
        self.tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Asking":
        self.tasks = [asyncio.create_task(self._ask_on()) for _ in range(CLIENTS)]
        await until(lambda: self.answered > 5 * CLIENTS, "load")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.done = True
        await asyncio.gather(*self.tasks)

    async def _ask_on(self) -> None:
        caller = None
        while not self.done:
            if caller is None:
                caller = Caller(self.url)
                try:
                    await caller.open()
                except OSError:
                    return  # nobody listens any more: nothing was sent
            sent_s = time.monotonic()
            try:
                caller.send(ROW)
                status, headers, _ = await asyncio.wait_for(caller.receive(), LIMIT_S)
            except (OSError, EOFError):
                status, headers = 0, {"connection": "close"}
            if status == 200:
                self.answered += 1
            else:
                self.lost_s.append(sent_s)
            if headers.get("connection") == "close":
                self.closed += status == 200
                caller.close()
                caller = None
        if caller is not None:
            caller.close()


async def end(server: ServerProcess, asking: Asking) -> tuple[float, int]:
    """Stop the server; when it was told, and its exit code."""
    told_s = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    code = await asyncio.to_thread(server.process.wait, LIMIT_S)
    return told_s, code


@pytest.mark.parametrize("grace_s", [0, 2])
def test_no_request_is_lost_that_was_sent_before_the_grace_was_over(tmp_path: Path, grace_s: int) -> None:
    async def run() -> None:
        async with Asking(server.url) as asking:
            told_s, code = await end(server, asking)
        assert code == 0
        assert [sent_s - told_s for sent_s in asking.lost_s] == []
        assert asking.closed >= CLIENTS

    repository = make_repository(tmp_path / "repository")
    options = ("--drain-grace", str(grace_s), "--api-servers", "2")
    with serving(repository, tmp_path / "output", *options) as server:
        server.wait_until("/v2/health/ready", 200)
        asyncio.run(run())


_NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    upstream foldserve {{ server 127.0.0.1:{port}; keepalive 128; }}
    server {{
        listen 127.0.0.1:{own_port};
        keepalive_requests 1000000;
        location / {{
            proxy_pass http://foldserve; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_next_upstream off;
        }}
    }}
}}
"""


@contextlib.contextmanager
def proxy(nginx: str, folder: Path, url: str) -> Iterator[str]:
    """nginx before the server, with connections that it keeps, and no second try."""
    folder.mkdir()
    own_port = free_port()
    (folder / "nginx.conf").write_text(
        _NGINX.format(folder=folder, port=urlsplit(url).port, own_port=own_port)
    )
    process = subprocess.Popen([nginx, "-p", folder, "-c", folder / "nginx.conf"])
    try:
        yield f"http://127.0.0.1:{own_port}"
    finally:
        process.terminate()
        process.wait()


async def open_until(url: str) -> None:
    """Wait until somebody listens there."""
    until_s = time.monotonic() + LIMIT_S
    while True:
        caller = Caller(url)
        with contextlib.suppress(OSError):
            await caller.open()
            caller.close()
            return
        assert time.monotonic() < until_s
        await asyncio.sleep(0.02)  # between two tries


def test_no_request_is_lost_behind_nginx_that_was_sent_before_the_grace_was_over(
    tmp_path: Path, nginx: str
) -> None:
    grace_s = 2.0

    async def run(url: str) -> None:
        await open_until(url)
        async with Asking(url) as asking:
            told_s, code = await end(server, asking)
        assert code == 0
        assert asking.lost_s  # the proxy's own 502, once the server is gone
        # What was sent in the last moment may still have to find a connection when nobody listens any more.
        assert min(asking.lost_s) - told_s > 0.9 * grace_s

    repository = make_repository(tmp_path / "repository")
    with serving(repository, tmp_path / "output", "--drain-grace", str(grace_s)) as server:
        server.wait_until("/v2/health/ready", 200)
        with proxy(nginx, tmp_path / "nginx", server.url) as url:
            asyncio.run(run(url))


def test_idle_connections_outlast_the_grace_and_are_told_by_the_answer_to_their_next_request(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        idle, asks = Caller(server.url), Caller(server.url)
        for caller in (idle, asks):
            await caller.open()
            assert (await caller.ask(ROW))[0] == 200
        server.process.send_signal(signal.SIGTERM)
        await until(lambda: "stopping" in server.output, "the grace")
        status, headers, _ = await asks.ask(ROW)
        assert (status, headers["connection"]) == (200, "close")
        assert await asyncio.wait_for(asks.reader.read(), LIMIT_S) == b""
        # Not a word on the other one until the end, and then it is closed in order.
        assert await asyncio.wait_for(idle.reader.read(), LIMIT_S) == b""
        new = Caller(server.url)
        with pytest.raises(ConnectionRefusedError):
            await new.open()
        for caller in (idle, asks):
            caller.close()

    repository = make_repository(tmp_path / "repository")
    with serving(repository, tmp_path / "output", "--drain-grace", "1") as server:
        server.wait_until("/v2/health/ready", 200)
        asyncio.run(run())
        assert server.process.wait(LIMIT_S) == 0


def test_errors_and_pages_close_their_connections_too_while_the_server_ends(tmp_path: Path) -> None:
    async def run() -> None:
        server.process.send_signal(signal.SIGTERM)
        await until(lambda: "stopping" in server.output, "the grace")
        body = json.dumps({"inputs": "x"}).encode()
        post = b"POST /predict/linear HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
        for message, expected in (
            (b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n", 200),
            (b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n", 404),
            (b"GET /v2/health/ready HTTP/1.1\r\nhost: x\r\n\r\n", 503),
            (post % len(body) + b"\r\n" + body, 400),
            (post % len(body) + b"content-encoding: identity\r\n\r\n" + body, 400),
        ):
            caller = Caller(server.url)
            await caller.open()
            caller.writer.write(message)
            status, headers, _ = await asyncio.wait_for(caller.receive(), LIMIT_S)
            assert (status, headers.get("connection")) == (expected, "close")
            assert await asyncio.wait_for(caller.reader.read(), LIMIT_S) == b""
            caller.close()

    repository = make_repository(tmp_path / "repository")
    with serving(repository, tmp_path / "output", "--drain-grace", "30") as server:
        server.wait_until("/v2/health/ready", 200)
        asyncio.run(run())
        server.process.send_signal(signal.SIGTERM)  # a second one ends it
        assert server.process.wait(LIMIT_S) == 0
