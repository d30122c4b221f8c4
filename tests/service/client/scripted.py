"""A server that does to each connection what a test says: what no real one does when it is asked to."""

import contextlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Handle = Callable[[socket.socket, bytes], None]
"""What is done with a connection once a request has come whole."""
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER that has a close send a reset."""


@dataclass
class Scripted:
    """requests: what came, in order, head and body. connections: how many were taken."""

    url: str
    port: int
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0


class Waits:
    """Says nothing. arrived: set when a request has come; gone: when its client has ended the connection."""

    def __init__(self) -> None:
        self.arrived, self.gone = threading.Event(), threading.Event()

    def __call__(self, connection: socket.socket, _: bytes) -> None:
        self.arrived.set()
        with contextlib.suppress(OSError):
            while connection.recv(65536):
                pass
        self.gone.set()


def answers(body: bytes = b'{"models": []}', status: str = "200 OK", *headers: str, cut: int = 0) -> Handle:
    """Answers, and keeps the connection. cut: how many bytes of the body never come."""
    head = "\r\n".join((f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "\r\n"))
    whole = head.encode() + body

    def handle(connection: socket.socket, _: bytes) -> None:
        connection.sendall(whole[: len(whole) - cut])

    return handle


def refuses(status: str, code: str, *headers: str) -> Handle:
    """Answers with an error."""
    return answers(json.dumps({"error": "in a test", "code": code}).encode(), status, *headers)


def closes(connection: socket.socket, _: bytes) -> None:
    """Says nothing and ends the connection."""


def resets(connection: socket.socket, _: bytes) -> None:
    """Says nothing and breaks the connection."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


@contextlib.contextmanager
def scripted(
    *handles: Handle, tls: ssl.SSLContext | None = None, bound: Any = (socket.AF_INET, ("127.0.0.1", 0))
) -> Iterator[Scripted]:
    """Requests are met by these in turn, the last of which meets all that follow. One connection at a time.

    bound: family and address to listen at.
    """
    turns = iter(handles)
    with socket.socket(bound[0]) as listener:
        listener.bind(bound[1])
        listener.listen()
        name = listener.getsockname()
        port = 0 if isinstance(name, str) else name[1]
        made = Scripted(f"{'https' if tls else 'http'}://127.0.0.1:{port}", port)

        def of_now() -> Handle:
            return next(turns, handles[-1])

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                made.connections += 1
                with contextlib.suppress(OSError), connection:
                    _converse(
                        tls.wrap_socket(connection, server_side=True) if tls else connection, made, of_now
                    )

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield made
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(timeout=20)
            assert not thread.is_alive()


def _converse(connection: socket.socket, made: Scripted, of_now: Callable[[], Handle]) -> None:
    with connection:
        while request := _request(connection):
            made.requests.append(request)
            handle = of_now()
            handle(connection, request)
            if handle in (closes, resets) or isinstance(handle, Waits):
                return


def _request(connection: socket.socket) -> bytes:
    """One request, whole; empty when the connection has ended."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        (
            int(line.split(b":")[1])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length:")
        ),
        0,
    )
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body
