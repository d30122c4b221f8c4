"""Where gRPC listens, and what is said when it cannot."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from foldserve.service.errors import ConfigError
from foldserve.service.frontend.connections.addresses import bind
from foldserve.service.frontend.grpc import ports
from foldserve.service.frontend.grpc.ports import GrpcPort
from tests.e2e.server_process import free_port


@contextlib.contextmanager
def held(hosts: str, port: int) -> Iterator[GrpcPort]:
    listeners = bind(hosts, 0)
    try:
        with contextlib.closing(GrpcPort(port, listeners)) as made:
            yield made
    finally:
        for listener in listeners:
            listener.close()


def test_it_is_at_every_address_of_http_that_has_ports(tmp_path: Path) -> None:
    port = free_port()
    with held(f"127.0.0.1,127.0.0.2,unix:{tmp_path}/s", port) as made:
        assert made.addresses == (f"127.0.0.1:{port}", f"127.0.0.2:{port}")


def test_ipv6_addresses_are_in_brackets() -> None:
    port = free_port()
    try:
        with held("::1", port) as made:
            assert made.addresses == (f"[::1]:{port}",)
    except ConfigError as error:
        pytest.skip(str(error))


def test_held_port_is_nobody_elses_but_processes_of_ours_can_listen_there() -> None:
    port = free_port()
    with held("127.0.0.1", port):
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        with socket.socket() as ours:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            ours.bind(("127.0.0.1", port))
            ours.listen()
            with socket.create_connection(("127.0.0.1", port)):
                ours.accept()[0].close()
    with held("127.0.0.1", port):
        pass


@pytest.mark.parametrize("shared", [False, True])
def test_port_in_use_is_refused_though_it_could_be_shared(shared: bool) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1 port {port} for gRPC: .*--grpc-port"):
            held("127.0.0.1", port).__enter__()


def test_without_a_port_nothing_is_asked_for() -> None:
    with held("127.0.0.1", 0) as made:
        assert made.addresses == ()


def test_sockets_of_the_file_system_alone_are_not_enough(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs an IP address in --host"):
        held(f"unix:{tmp_path}/s", free_port()).__enter__()


@pytest.mark.parametrize("missing", ["grpc", "google.protobuf", "google"])
def test_missing_packages_are_named_with_the_command_that_installs_them(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(name: str) -> object:
        if missing == "google" and name.startswith("google"):
            raise ModuleNotFoundError(name)
        return None if name == missing else object()

    monkeypatch.setattr(ports, "find_spec", find)
    with pytest.raises(ConfigError, match=r'pip install "foldserve\[grpc\]"'):
        held("127.0.0.1", free_port()).__enter__()
