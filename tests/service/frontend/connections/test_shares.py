"""Whose turn it is, by the numbers on the scoreboard."""

import random
import time

import pytest

from foldserve.service.frontend.connections import shares as module
from foldserve.service.frontend.connections.shares import SLACK, Shares
from foldserve.service.ipc.scoreboard import Dimensions, Scoreboard


def shares_of(count: int) -> list[Shares]:
    """All API servers, each with its own view of one board; all take connections."""
    board = Scoreboard(Dimensions(api_servers=count, workers=1, models=1, instances=1))
    made = [Shares(board.map(), index) for index in range(count)]
    for one in made:
        one.begin()
    return made


def test_the_only_one_always_takes() -> None:
    (one,) = shares_of(1)
    for _ in range(1000):
        assert one.my_turn()
        one.came()
    assert one.mine == 1000


@pytest.mark.parametrize(("servers", "connections"), [(4, 8), (4, 64), (4, 256), (8, 100), (3, 7)])
def test_whoever_wakes_first_none_gets_more_than_half_more_than_the_mean(
    servers: int, connections: int
) -> None:
    everyone = shares_of(servers)
    chance = random.Random(5)
    left = connections
    while left:
        one = chance.choice(everyone[:2] if chance.random() < 0.8 else everyone)  # some are always quicker
        if one.my_turn():
            one.came()
            left -= 1
    held = [one.mine for one in everyone]
    assert sum(held) == connections
    assert max(held) <= max(1.5 * connections / servers, min(held) + 1)


def test_one_that_was_started_again_catches_up() -> None:
    first, second = shares_of(2)
    for _ in range(20):
        first.came()
    assert not first.my_turn()
    for _ in range(20):
        assert second.my_turn()
        second.came()
    assert first.my_turn()


def test_with_many_connections_a_part_more_is_not_worth_a_wait() -> None:
    first, second = shares_of(2)
    for _ in range(80):
        first.came()
        second.came()
    for _ in range(80 // SLACK):
        assert first.my_turn()
        first.came()
    first.came()
    assert not first.my_turn()


def test_those_that_take_none_and_those_that_have_ended_are_not_waited_for() -> None:
    first, second, third = shares_of(3)
    for _ in range(5):
        first.came()
    second.end()
    assert not first.my_turn()
    third.end()
    assert first.my_turn()


def test_connection_that_ends_makes_room_and_none_ends_below_zero() -> None:
    first, second = shares_of(2)
    first.came()
    first.came()
    assert not first.my_turn()
    first.left()
    first.left()
    assert first.my_turn()
    second.came()
    second.end()
    second.left()  # its connections go on while it takes none any more
    second.begin()
    assert second.mine == 0


def test_one_that_does_not_come_is_left_out_for_a_while_and_then_waited_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    first, second, third = shares_of(3)
    first.came()
    third.came()
    assert not first.my_turn()
    first.wait_no_longer()
    assert first.my_turn()
    first.came()
    assert not first.my_turn()  # the third is still waited for
    third.came()
    third.came()
    assert first.my_turn()
    now_s[0] += module.FORGET_S
    assert not first.my_turn()
    second.came()
    assert not first.my_turn()
