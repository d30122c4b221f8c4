"""What --host and --port name, bound for real on this machine's loopback."""

import errno
import logging
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from foldserve.service.errors import ConfigError
from foldserve.service.frontend.connections.addresses import bind, urls

NOBODYS_V6 = "2001:db8::1"
"""For documentation: no machine has it."""


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")


@contextmanager
def bound(hosts: str, port: int = 0) -> Iterator[list[socket.socket]]:
    sockets = bind(hosts, port)
    try:
        yield sockets
    finally:
        for one in sockets:
            one.close()


def reaches(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


def port_of(sockets: list[socket.socket]) -> int:
    (port,) = {one.getsockname()[1] for one in sockets}
    assert port > 0
    return port


@contextmanager
def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> Iterator[None]:
    """Every name has these addresses."""

    def found(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        return [
            (
                socket.AF_INET6 if ":" in address else socket.AF_INET,
                socket.SOCK_STREAM,
                socket.IPPROTO_TCP,
                "",
                (address, port, 0, 0) if ":" in address else (address, port),
            )
            for address in addresses
        ]

    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", found)
        yield


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "[127.0.0.1]", " 127.0.0.1 "])
def test_address_listens_at_once_on_a_port_that_the_sockets_tell(host: str) -> None:
    with bound(host) as sockets:
        assert reaches("127.0.0.1", port_of(sockets))
        assert all(not one.getblocking() for one in sockets)


@ipv6
@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_ipv6_address_may_have_brackets_and_is_only_itself(host: str) -> None:
    with bound(host) as sockets:
        port = port_of(sockets)
        assert reaches("::1", port)
        assert not reaches("127.0.0.1", port)


@ipv6
@pytest.mark.parametrize("host", ["::", "[::]", "0.0.0.0,::", "::,0.0.0.0"])
def test_every_address_of_both_kinds_is_served(host: str) -> None:
    with bound(host) as sockets:
        port = port_of(sockets)
        assert reaches("::1", port)
        assert reaches("127.0.0.1", port)


def test_every_address_is_ipv4_alone_where_there_is_no_ipv6(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class OnlyIPv4(socket.socket):
        def __init__(self, family: int = -1, *more: Any, **named: Any) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
            super().__init__(family, *more, **named)

    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", OnlyIPv4)
        sockets = bind("::", 0)
    assert reaches("127.0.0.1", port_of(sockets))
    sockets[0].close()
    assert "no IPv6" in caplog.text


@pytest.mark.parametrize("addresses", [(NOBODYS_V6, "127.0.0.1"), ("127.0.0.1", NOBODYS_V6)])
def test_of_a_names_addresses_those_that_the_machine_has_are_served_and_the_rest_is_told(
    addresses: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with resolving(monkeypatch, *addresses), bound("some.name") as sockets:
        assert [one.getsockname()[0] for one in sockets] == ["127.0.0.1"]
    assert NOBODYS_V6 in caplog.text


def test_name_none_of_whose_addresses_is_here_is_refused_with_the_address_and_its_own_mend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with (
        resolving(monkeypatch, "192.0.2.1"),
        pytest.raises(ConfigError, match=r"some\.name \(192\.0\.2\.1\) .*has no such address") as caught,
    ):
        bind("some.name", 8000)
    assert "end what uses" not in str(caught.value)


@ipv6
def test_name_one_of_whose_addresses_is_in_use_is_refused_for_clients_would_meet_another_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            resolving(monkeypatch, "::1", "127.0.0.1"),
            pytest.raises(
                ConfigError, match=rf"localhost \(127\.0\.0\.1\) port {port}: .*another with --port"
            ),
        ):
            bind("localhost", port)
    assert not reaches("::1", port)  # what was bound before is let go


def test_busy_port_is_refused_with_the_mend_also_while_its_server_has_accepted_nothing() -> None:
    with bound("127.0.0.1") as first:
        port = port_of(first)
        with pytest.raises(
            ConfigError, match=f"cannot listen on 127.0.0.1 port {port}: .*another with --port"
        ):
            bind("127.0.0.1", port)


@pytest.mark.parametrize(
    "host", ["no.such.host.invalid", "192.0.2.1", "127.0.0.1:8000", "a..b", "x" * 70, "%"]
)
def test_address_that_is_none_of_this_machine_is_named(host: str) -> None:
    with pytest.raises(ConfigError) as caught:
        bind(host, 0)
    assert host in str(caught.value)


@pytest.mark.parametrize("host", ["", ",", " , "])
def test_no_address_at_all_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="names no address"):
        bind(host, 0)


def test_several_addresses_share_a_free_port_and_an_address_given_twice_is_one(tmp_path: Path) -> None:
    with bound(f"127.0.0.1,127.0.0.2,127.0.0.1,unix:{tmp_path}/s") as sockets:
        port = port_of(sockets[:2])
        assert len(sockets) == 3
        assert reaches("127.0.0.2", port)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:{port}"),
        ("0.0.0.0", "http://127.0.0.1:{port}"),
        pytest.param("::1", "http://[::1]:{port}", marks=ipv6),
        pytest.param("::", "http://[::1]:{port}", marks=ipv6),
    ],
)
def test_url_of_an_address_can_be_followed(host: str, url: str) -> None:
    with bound(host) as sockets:
        port = port_of(sockets)
        assert urls(sockets) == [url.format(port=port)]
        assert reaches(url[7:].rpartition(":")[0].strip("[]"), port)


# In the file system -------------------------------------------------------------------------------------------


def greets(path: Path) -> bool:
    with closing(socket.socket(socket.AF_UNIX)) as client:
        try:
            client.connect(os.fspath(path))
        except OSError:
            return False
    return True


def test_socket_in_the_file_system_is_there_while_it_is_open_and_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with bound(f"unix:{path}") as sockets:
        assert greets(path)
        assert urls(sockets) == [f"unix:{path}"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o777 & ~_umask()
    assert not path.exists()


def _umask() -> int:
    before = os.umask(0o077)
    os.umask(before)
    return before


def test_relative_path_is_removed_at_the_end_wherever_the_process_is_by_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with bound("unix:s.sock"):
        assert (tmp_path / "s.sock").exists()
        monkeypatch.chdir("/")
    assert not (tmp_path / "s.sock").exists()


def test_socket_that_a_dead_server_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(os.fspath(path))
    with bound(f"unix:{path}"):
        assert greets(path)


def test_socket_on_which_somebody_listens_is_left_to_him(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with bound(f"unix:{path}"):
        with pytest.raises(ConfigError, match="a server listens there; end it"):
            bind(f"unix:{path}", 0)
        assert greets(path)


def test_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ConfigError, match="a file of that name is there"):
        bind(f"unix:{path}", 0)
    assert path.read_text() == "data"


def test_socket_of_a_server_that_took_the_name_over_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    (old,) = bind(f"unix:{path}", 0)
    path.unlink()
    with bound(f"unix:{path}"):
        old.close()
        assert greets(path)


def test_child_that_closes_the_socket_does_not_remove_it(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with bound(f"unix:{path}") as (listener,):
        child = os.fork()
        if not child:
            listener.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert greets(path)


@pytest.mark.parametrize(
    ("path", "says"),
    [("", "no usable path"), ("x" * 200, "no usable path"), ("none/s.sock", "a folder that is there")],
)
def test_path_that_cannot_be_is_refused(path: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        bind(f"unix:{tmp_path / path if path else ''}", 0)
