"""docs/engine.md says what the code does: every state, every move and who makes it, every phase, files that exist."""

import re
from pathlib import Path

from foldserve.service.ipc.records import DONE, PIPE_BUF, TICKET
from foldserve.service.ipc.slots.arena import HEADER
from foldserve.service.ipc.slots.slot_state import MOVES, Side, State
from foldserve.service.repository.model_config import KEYS
from foldserve.service.server.supervisor import Phase
from foldserve.service.settings import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "engine.md").read_text()
PICTURE = (ROOT / "docs" / "engine.svg").read_text()


def section(title: str) -> str:
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_table_of_moves_is_the_codes() -> None:
    rows = re.findall(
        r"^\| ([A-Z_]+) \| ([A-Z_]+) \| ([^|]+) \|", section("The states of a slot"), re.MULTILINE
    )
    sides = {"API server": Side.API_SERVER, "worker": Side.WORKER}
    told = {(State[before], State[after]): sides[who] for before, after, who in rows}
    assert len(rows) == len(told)
    assert told == MOVES


def test_the_picture_shows_every_state() -> None:
    for state in State:
        assert f'class="head">{state.name}</text>' in PICTURE


def test_every_phase_of_the_server_is_explained() -> None:
    told = re.findall(r"^\| ([A-Z]+) \|", section("Ending"), re.MULTILINE)
    assert told == [phase.name for phase in Phase]


def test_every_file_that_it_names_exists() -> None:
    named = set(re.findall(r"`([a-z_/]+\.py)`", TEXT))
    assert named
    assert {name for name in named if not (ROOT / "service" / name).exists()} == set()


def test_every_setting_that_it_names_exists() -> None:
    flags = {setting.flag for setting in SETTINGS}
    assert set(re.findall(r"`(--[a-z-]+)`", TEXT)) <= flags
    keys = {key.name for key in KEYS}
    assert set(re.findall(r"`(queue\.[a-z_]+)`", TEXT)) <= keys


def test_the_sizes_that_it_states_are_the_records_own() -> None:
    assert f"tickets ({TICKET.itemsize} bytes" in TEXT
    assert f"records of {DONE.itemsize} bytes" in TEXT
    assert f"headers ({HEADER.itemsize} bytes" in TEXT
    assert f"up\n   to {PIPE_BUF:,} bytes" in TEXT
    assert f"{TICKET.itemsize} bytes each" in PICTURE
