"""How long, and how soon again; the clock is the test's."""

import pytest

from foldserve.service.client.deadline import Deadline, pause_after_break_s, servers_part_s
from foldserve.service.client.errors import DeadlinePassed, ServerRefused


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


def refused(after_s):
    return ServerRefused("429 queue_full: full", 429, "queue_full", after_s)


def test_time_runs_out_once_for_all_tries():
    clock = Clock()
    deadline = Deadline(2.0, clock)
    clock.now_s += 1.5
    assert deadline.left_s() == pytest.approx(0.5)
    clock.now_s += 0.5
    with pytest.raises(DeadlinePassed, match="no answer within timeout_s=2"):
        deadline.left_s()


def test_pause_is_what_the_server_says_and_a_little_more_so_that_not_all_come_back_at_once():
    pauses = {Deadline(10.0, Clock()).pause_after(refused(1.0)) for _ in range(100)}
    assert len(pauses) > 50
    assert 1.0 <= min(pauses) <= max(pauses) <= 1.25


def test_refusal_is_the_answer_when_no_time_is_left_for_another_try():
    clock = Clock()
    for after_s, timeout_s in ((None, 10.0), (2.0, 2.0), (2.0, 1.0)):
        error = refused(after_s)
        with pytest.raises(ServerRefused) as caught:
            Deadline(timeout_s, clock).pause_after(error)
        assert caught.value is error
    assert 1.0 <= Deadline(1.01, clock).pause_after(refused(1.0)) <= 1.006


@pytest.mark.parametrize("timeout_s", [0, -1.0, float("nan")])
def test_time_that_is_none_is_refused(timeout_s):
    with pytest.raises(ValueError, match="expected more than 0 seconds"):
        Deadline(timeout_s)


def test_server_has_a_little_less_than_the_call_so_that_its_word_arrives():
    assert servers_part_s(0.1) == pytest.approx(0.09)
    assert servers_part_s(30.0) == pytest.approx(29.75)


def test_connection_that_ended_is_made_anew_at_once_and_then_ever_later():
    assert pause_after_break_s(1) == 0.0
    for breaks, least_s in ((2, 0.1), (3, 0.2), (4, 0.4), (20, 2.0)):
        assert least_s <= pause_after_break_s(breaks) <= least_s * 1.25
