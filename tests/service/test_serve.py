"""From settings to the plan of a server, and what is said about it."""

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from service.backends import SessionOptions
from service.backends.devices import Devices
from service.config import ServeSettings, load_settings
from service.errors import ConfigError
from service.repository import read_repository
from service.serve import bind, run_server, session_options, worker_writers
from tests.service.repositories import save_linear


@pytest.fixture
def settings(tmp_path: Path) -> ServeSettings:
    save_linear(tmp_path / "linear" / "1" / "model.onnx")
    return load_settings({"repository": str(tmp_path), "device": "cpu"}, {})


def test_default_model_that_is_not_there_is_refused_with_those_that_are(settings: ServeSettings) -> None:
    with pytest.raises(ConfigError, match=r"--default-model 'resnet' is not in .*; expected one of linear"):
        run_server(replace(settings, default_model="resnet"))


def test_every_version_gets_workers_for_each_device_place_and_instance(settings: ServeSettings) -> None:
    (settings.repository / "linear" / "config.yaml").write_text("instances: 3\n")
    entries = read_repository(settings.repository)
    writers = worker_writers(entries, Devices(("cuda:0", "cuda:1"), ""), workers_per_device=2)
    assert len(writers["linear", "1"]) == 12
    assert len(set(writers["linear", "1"])) == 12


@pytest.mark.parametrize(("workers", "threads"), [(1, 8), (3, 2), (20, 1)])
def test_models_workers_share_the_cores(
    settings: ServeSettings, monkeypatch: pytest.MonkeyPatch, workers: int, threads: int
) -> None:
    monkeypatch.setattr("service.serve.usable_cores", lambda: 8)
    (entry,) = read_repository(settings.repository)
    assert session_options(entry, workers).threads == threads


def test_threads_of_config_yaml_are_kept(settings: ServeSettings) -> None:
    (settings.repository / "linear" / "config.yaml").write_text("session: {threads: 5}\n")
    (entry,) = read_repository(settings.repository)
    assert session_options(entry, 1) == SessionOptions(threads=5)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_any_address_of_the_machine_can_be_bound(host: str) -> None:
    sockets = bind(host, 0)
    assert sockets
    for bound in sockets:
        assert bound.getsockname()[1] > 0
        bound.close()


def test_busy_port_is_refused_with_the_mend() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=f"cannot listen on 127.0.0.1 port {port}: .*another with --port"
        ):
            bind("127.0.0.1", port)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match=host):
        bind(host, 0)
