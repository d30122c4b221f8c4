"""Listening sockets end without taking what nobody will answer."""

import socket

import pytest

from foldserve.service.server.listeners import close_listeners, stop_accepting

SO_DETACH_FILTER, SO_LOCK_FILTER = 27, 44  # asm-generic/socket.h


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


@pytest.mark.parametrize("may_filter", [True, False])
def test_what_was_taken_before_can_still_be_accepted_and_answered_and_nothing_more_is_taken(
    may_filter: bool,
) -> None:
    with listening() as listener, socket.create_connection(listener.getsockname()) as early:
        if not may_filter:  # refused as to a user without CAP_NET_ADMIN, where the system asks for that
            listener.setsockopt(socket.SOL_SOCKET, SO_LOCK_FILTER, 1)
            with pytest.raises(PermissionError):
                listener.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
        early.sendall(b"sent before")
        stop_accepting([listener])
        with pytest.raises(TimeoutError):
            socket.create_connection(listener.getsockname(), timeout=0.2)
        accepted, _ = listener.accept()
        with accepted:
            early.sendall(b" and after")
            assert accepted.recv(100).startswith(b"sent before")
            accepted.sendall(b"answer")
            assert early.recv(100) == b"answer"


def test_the_last_to_close_is_who_still_accepts() -> None:
    theirs = listening()
    ours = theirs.dup()
    address = theirs.getsockname()
    with socket.create_connection(address) as early:
        close_listeners([ours])
        assert ours.fileno() == -1
        accepted, _ = theirs.accept()
        accepted.close()
        assert early.recv(1) == b""
    theirs.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_sockets_that_are_no_tcp_are_left_as_they_are(tmp_path: object) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/socket")
        listener.listen()
        stop_accepting([listener])
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{tmp_path}/socket")
