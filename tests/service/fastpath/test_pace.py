"""How quickly refused clients may come again."""

import pytest

from service.fastpath.pace import FREE, RATE, Pace


def test_a_burst_of_refusals_is_followed_by_no_pause() -> None:
    pace = Pace()
    pauses = [pace.pause_s(5.0) for _ in range(FREE + 1)]
    assert pauses == pytest.approx(
        [0.0] * FREE + [1 / RATE], abs=1e-9
    )  # rounding of sums of 5.0 and 1 / RATE


def test_refusals_below_the_rate_are_never_followed_by_a_pause() -> None:
    pace = Pace()
    assert all(pace.pause_s(i / (RATE * 0.9)) == 0.0 for i in range(10 * RATE))


def test_clients_that_come_again_at_once_are_slowed_down_to_the_rate() -> None:
    pace = Pace()
    # Each client is refused, paused, and back the moment that its pause ends.
    clients = [0.0] * 512
    refused = 0
    while (now_s := min(clients)) < 3.0:
        clients[clients.index(now_s)] = now_s + max(pace.pause_s(now_s), 1e-6)
        refused += 1
    assert refused == pytest.approx(
        3.0 * RATE + FREE, rel=0.05
    )  # the clients that wait at the end: 512 of 15,500


def test_after_a_calm_time_a_burst_is_free_again() -> None:
    pace = Pace()
    for _ in range(3 * FREE):
        pace.pause_s(0.0)
    assert pace.pause_s(0.0) > 0.0
    assert pace.pause_s(4 * FREE / RATE) == 0.0
