"""A server in a thread that answers every second POST with 429."""

import contextlib
import socketserver
import threading
from collections.abc import Iterator

import pytest


class PostServer(socketserver.ThreadingTCPServer):
    """seen: head and body of every request."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: list[tuple[str, bytes]] = []
        self.lock = threading.Lock()

    @property
    def port(self) -> int:
        port: int = self.server_address[1]
        return port


class _Handler(socketserver.StreamRequestHandler):
    server: PostServer

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # load generators end without a goodbye
            self._answer_all()

    def _answer_all(self) -> None:
        while line := self.rfile.readline():
            head = line
            while (line := self.rfile.readline()) not in (b"\r\n", b""):
                head += line
            lengths = [
                x.split(b":")[1] for x in head.split(b"\r\n") if x.lower().startswith(b"content-length:")
            ]
            body = self.rfile.read(int(lengths[0]))
            with self.server.lock:
                self.server.seen.append((head.decode(), body))
                refused = len(self.server.seen) % 2 == 0
            status = b"429 Too Many Requests" if refused else b"200 OK"
            self.wfile.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 2\r\n\r\n{}")


@pytest.fixture
def posts() -> Iterator[PostServer]:
    with PostServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
