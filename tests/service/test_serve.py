"""From settings to the plan of a server, and what is said about it."""

import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from service.backends import SessionOptions
from service.backends.devices import Devices
from service.config import ServeSettings, load_settings
from service.errors import ConfigError
from service.repository import read_repository
from service.serve import bind, run_server, session_options, tell_what_is_served, version_of
from service.transport.board import Board, Dimensions
from tests.service.repositories import metrics_of, save_linear


@pytest.fixture
def settings(tmp_path: Path) -> ServeSettings:
    save_linear(tmp_path / "linear" / "1" / "model.onnx")
    return load_settings({"repository": str(tmp_path), "device": "cpu"}, {})


def test_default_model_that_is_not_there_is_refused_with_those_that_are(settings: ServeSettings) -> None:
    with pytest.raises(ConfigError, match=r"--default-model 'resnet' is not in .*; expected one of linear"):
        run_server(replace(settings, default_model="resnet"))


def test_repository_that_cannot_be_read_is_refused_before_anything_starts(settings: ServeSettings) -> None:
    (settings.repository / "linear" / "config.yaml").write_text("instances: none\n")
    with pytest.raises(ConfigError, match="instances"):
        run_server(settings)


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


# What is said once everything is loaded ---------------------------------------------------------------------


def said(
    settings: ServeSettings, host: str, ready: bool, note: str, capfd: pytest.CaptureFixture[str]
) -> str:
    entries = read_repository(settings.repository)
    metrics = metrics_of(version_of(entries[0].artifacts[0]))
    metrics.model_loaded("linear", "1", 1.25)
    board = Board(Dimensions(api_servers=1, workers=2, models=1, instances=1)).map()
    board.ready[1, 0] = ready
    board.write_note(0, 0, note)
    told = tell_what_is_served(
        replace(settings, host=host, port=1234), entries, Devices(("cpu",), ""), board, metrics
    )
    assert told == ready
    return capfd.readouterr().out


def test_the_block_names_address_device_and_each_model_with_its_load_time(
    settings: ServeSettings, capfd: pytest.CaptureFixture[str]
) -> None:
    text = said(settings, "127.0.0.1", True, "", capfd)
    assert "serves http://127.0.0.1:1234 on cpu" in text
    assert re.search(r"linear/1 +onnxruntime +batch 32 +ready in 1\.2 s", text)


def test_ipv6_address_is_told_as_a_link_that_can_be_followed(
    settings: ServeSettings, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "http://[::1]:1234 " in said(settings, "::1", True, "", capfd)


def test_model_that_one_worker_of_two_serves_is_ready(
    settings: ServeSettings, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "ready in" in said(settings, "127.0.0.1", True, "no memory left", capfd)


def test_server_without_any_model_says_so_and_ends(
    settings: ServeSettings, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert said(settings, "127.0.0.1", False, "no memory left", capfd) == ""
    assert "no model of" in caplog.text
