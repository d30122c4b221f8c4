"""Who may ask, as the processes of a server have it."""

import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from foldserve.service.errors import Unauthorized
from foldserve.service.frontend.connections.addresses import bind
from foldserve.service.ipc.control import ControlMessage
from foldserve.service.ipc.scoreboard import Dimensions
from foldserve.service.server.access import reloading
from foldserve.service.server.access.control import Access, ApiAccess, warn_of_open_door
from tests.service.support import SETTINGS

DIMENSIONS = Dimensions(2, 1, 3, 1)
KEY = "a-key-of-more-than-16"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "keys.yaml").write_text(f"- {{name: a, key: {KEY}, queue_share: 0.5}}\n")
    return tmp_path / "keys.yaml"


def test_change_of_the_file_reaches_each_api_server(file: Path) -> None:
    access = Access(replace(SETTINGS, keys=str(file)), DIMENSIONS)
    api_server = ApiAccess(access, 1)
    keys = api_server.gate.keys
    assert keys is not None
    quota = keys.caller(None, KEY).quota
    assert quota is not None
    quota.count(2, 5)
    told: list[ControlMessage] = []
    watched = access.watched(told.append)
    assert watched is not None
    file.write_text("- {name: a, key: another-key-0123456789, queue_share: 0.5}\n")
    watched.renew()
    assert told == [ControlMessage.KEYS_CHANGED]
    assert keys.caller(None, KEY).name == "a"  # until it has heard
    assert api_server.take_keys()
    with pytest.raises(Unauthorized):
        keys.caller(None, KEY)
    same = keys.caller(None, "another-key-0123456789").quota
    assert same is not None
    assert same.waiting_rows(2) == 5
    access.api_server_died(1)
    assert same.waiting_rows(2) == 0
    watched.renew()
    assert len(told) == 1
    os.close(watched.fileno())


def test_without_settings_nothing_is_asked_and_nothing_watched() -> None:
    access = Access(SETTINGS, DIMENSIONS)
    api_server = ApiAccess(access, 0)
    assert (api_server.gate.keys, api_server.gate.cross_origin, api_server.tls) == (None, None, None)
    assert not api_server.take_keys()
    assert access.watched(print) is None
    access.api_server_died(0)


def test_system_that_tells_of_no_changes_is_a_warning(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def nothing(paths: object) -> None:
        raise OSError("too many watches")

    monkeypatch.setattr(reloading, "FileChanges", nothing)
    assert Access(replace(SETTINGS, keys=str(file)), DIMENSIONS).watched(print) is None
    assert "too many watches" in caplog.text


@pytest.fixture
def listeners(request: pytest.FixtureRequest) -> Iterator[list[socket.socket]]:
    made = bind(request.param, 0)
    yield made
    for one in made:
        one.close()


@pytest.mark.parametrize(
    ("listeners", "keys", "warns"),
    [
        ("127.0.0.1", None, False),
        ("127.0.0.2", None, False),
        ("localhost", None, False),
        ("unix:/tmp/foldserve-test-door", None, False),
        ("0.0.0.0", None, True),
        ("0.0.0.0", "keys.yaml", False),
    ],
    indirect=["listeners"],
)
def test_door_that_is_open_to_others_is_told_with_how_to_close_it(
    listeners: list[socket.socket], keys: str | None, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_open_door(replace(SETTINGS, keys=keys), listeners)
    assert ("--keys FILE" in caplog.text) == warns
    assert ("0.0.0.0" in caplog.text) == warns
