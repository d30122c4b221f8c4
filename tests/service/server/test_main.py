"""From settings to the plan of a server, and what is said about it."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from foldserve.service.backends.devices import Devices
from foldserve.service.errors import ConfigError
from foldserve.service.host.processes import StopSignals
from foldserve.service.ipc.resources import Sizes, Transport
from foldserve.service.ipc.scoreboard import Dimensions
from foldserve.service.repository.index import read_repository
from foldserve.service.repository.model_version import versions_of
from foldserve.service.server.main import (
    SPARE_MODELS,
    model_rows,
    print_startup_summary,
    run_server,
    warn_of_limits,
)
from foldserve.service.server.model_control import ModelControl
from foldserve.service.setting_sources import load_settings
from foldserve.service.settings import ServeSettings
from tests.service.repositories import metrics_of, save_linear


@pytest.fixture
def settings(tmp_path: Path) -> ServeSettings:
    save_linear(tmp_path / "linear" / "1" / "model.onnx")
    return load_settings({"repository": str(tmp_path), "device": "cpu"}, {})


@pytest.fixture
def stop() -> Iterator[StopSignals]:
    with StopSignals() as signals:
        yield signals


def test_default_model_that_is_not_there_is_refused_with_those_that_are(
    settings: ServeSettings, stop: StopSignals
) -> None:
    with pytest.raises(
        ConfigError, match=r"--default-model is 'resnet', and .* has no model of .*; expected one of lin"
    ):
        run_server(replace(settings, default_model="resnet"), stop)


def test_repository_that_cannot_be_read_is_refused_before_anything_starts(
    settings: ServeSettings, stop: StopSignals
) -> None:
    (settings.repository / "linear" / "config.yaml").write_text("instances: none\n")
    with pytest.raises(ConfigError, match="instances"):
        run_server(settings, stop)


def test_model_table_has_room_for_some_models_more_or_for_as_many_as_are_asked_for(
    settings: ServeSettings,
) -> None:
    assert model_rows(settings, 3) == 3 + SPARE_MODELS
    assert model_rows(replace(settings, max_models=5), 3) == 5


def test_too_few_rows_for_the_repository_are_refused_with_both_numbers_and_the_fix(
    settings: ServeSettings, stop: StopSignals
) -> None:
    save_linear(settings.repository / "other" / "1" / "model.onnx")
    with pytest.raises(
        ConfigError, match=r"--max-models is 1, and .* holds 2 versions to serve; set it to at least 2"
    ):
        run_server(replace(settings, max_models=1, port=0), stop)


# What the machine may not give -------------------------------------------------------------------------------


def warnings(
    settings: ServeSettings, connections: int, memory_bytes: int | None, caplog: pytest.LogCaptureFixture
) -> str:
    warn_of_limits(settings, connections, memory_bytes)
    return caplog.text


def test_nothing_is_said_when_the_limits_are_wide_enough(
    settings: ServeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    promised = settings.arena_bytes + settings.receive_bytes
    assert warnings(settings, settings.max_in_flight, promised, caplog) == ""
    assert warnings(settings, settings.max_in_flight, None, caplog) == ""


def test_too_few_descriptors_for_max_in_flight_are_told_with_both_numbers_and_the_fix(
    settings: ServeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    text = warnings(settings, 900, None, caplog)
    assert re.search(r"900 connections, fewer than its --max-in-flight 4096; .*ulimit -n", text)


def test_memory_promised_to_all_api_servers_beyond_the_containers_limit_is_told(
    settings: ServeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    text = warnings(replace(settings, api_servers=2), 10_000, 2**30, caplog)
    assert re.search(r"2 API servers take 1536 MiB .* limit of 1024 MiB", text)


def test_repository_by_a_relative_path_in_a_removed_folder_is_refused_with_a_text(
    settings: ServeSettings, stop: StopSignals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(
        ConfigError, match="'models' is relative to the working folder, which has been removed"
    ):
        run_server(replace(settings, repository=Path("models")), stop)


# What is said once everything is loaded ---------------------------------------------------------------------


def said(
    settings: ServeSettings, addresses: list[str], ready: bool, note: str, capfd: pytest.CaptureFixture[str]
) -> str:
    metrics = metrics_of(("linear", "1"))
    transport = Transport(Dimensions(api_servers=1, workers=2, models=1, instances=1), Sizes(16, 4096))
    board = transport.board.map()
    models = ModelControl(transport, board, metrics)
    models.add(versions_of(read_repository(settings.repository))[0])
    metrics.model_loaded(0, 1.25)
    board.ready[1, 0] = ready
    board.write_load_error(0, 0, note)
    models.check([], [])
    told = print_startup_summary(settings, addresses, Devices(("cpu",), ""), models.table, metrics)
    assert told == ready
    return capfd.readouterr().out


def test_the_block_names_address_device_and_each_model_with_its_load_time(
    settings: ServeSettings, capfd: pytest.CaptureFixture[str]
) -> None:
    text = said(settings, ["http://127.0.0.1:1234"], True, "", capfd)
    assert "serves http://127.0.0.1:1234 on cpu (compiled: false)" in text
    assert re.search(r"linear/1 +onnxruntime +batch 32 +ready in 1\.2 s", text)


def test_every_address_is_told(settings: ServeSettings, capfd: pytest.CaptureFixture[str]) -> None:
    text = said(settings, ["http://[::1]:1234", "unix:/run/x.sock"], True, "", capfd)
    assert "serves http://[::1]:1234 unix:/run/x.sock on cpu" in text


def test_model_that_one_worker_of_two_serves_is_ready(
    settings: ServeSettings, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "ready in" in said(settings, ["http://127.0.0.1:1234"], True, "no memory left", capfd)


def test_server_without_any_model_says_so_and_ends(
    settings: ServeSettings, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert said(settings, ["http://127.0.0.1:1234"], False, "no memory left", capfd) == ""
    assert "no model of" in caplog.text
