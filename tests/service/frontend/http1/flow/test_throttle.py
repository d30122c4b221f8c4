"""How quickly refused clients may come again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.service.frontend.http1.flow.throttle import (
    BUSY,
    CHECK_S,
    CLOSE,
    FREE,
    MOST_S,
    RATE,
    RefusalThrottle,
)


class Thread:
    """An event loop's thread that uses this part of a core."""

    def __init__(self, part: float) -> None:
        self.part = part
        self.now_s = 0.0
        self.cpu_s = 0.0
        self.pace = RefusalThrottle(lambda: self.cpu_s)

    def refuse(self, at_s: float) -> float:
        """The pause after a refusal at that time."""
        self.cpu_s += self.part * (at_s - self.now_s)
        self.now_s = at_s
        return self.pace.delay_s(at_s)

    def flood(self, seconds: float, clients: int = 512) -> int:
        """Refusals while each client is back the moment that its pause ends, or after a millisecond."""
        back_s = [self.now_s] * clients
        until_s, refused = self.now_s + seconds, 0
        while (now_s := min(back_s)) < until_s:
            back_s[back_s.index(now_s)] = now_s + max(self.refuse(now_s), 1e-3)  # CLOSE: it comes on another
            refused += 1
        return refused


def test_a_burst_of_refusals_is_followed_by_no_pause() -> None:
    thread = Thread(1.0)
    thread.flood(1.0)
    after_s = thread.now_s + 10.0
    pauses = [thread.refuse(after_s) for _ in range(FREE + 1)]
    assert pauses == pytest.approx(
        [0.0] * FREE + [1 / RATE], abs=1e-9
    )  # rounding of sums of seconds and 1 / RATE


def test_refusals_below_the_rate_are_never_followed_by_a_pause() -> None:
    thread = Thread(1.0)
    assert all(thread.refuse(i / (RATE * 0.9)) == 0.0 for i in range(10 * RATE))


def test_clients_that_come_again_at_once_are_slowed_down_to_the_rate_while_the_thread_has_no_time() -> None:
    thread = Thread(1.0)
    thread.flood(3.0)
    # All 512 wait at the end, and until the first check CHECK_S passed without pauses.
    assert thread.flood(10.0) == pytest.approx(10.0 * RATE, rel=0.06)


def test_a_thread_with_time_to_spare_lets_clients_come_again_as_they_like() -> None:
    assert Thread(BUSY * 0.9).flood(1.0, clients=16) >= 15_000  # each a thousand times a second


def test_pauses_end_when_the_thread_has_time_again() -> None:
    thread = Thread(1.0)
    thread.flood(1.0)
    thread.part = 0.1
    thread.flood(1.0 + CHECK_S)
    assert thread.flood(1.0, clients=16) >= 15_000


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 1e-5, 2e-4, 1e-3, 0.1, 2.0]), st.floats(0, 1)),
        min_size=1,
        max_size=300,
    ),
    st.integers(1, 40),
)
def test_a_pause_is_bounded_whatever_comes_and_nothing_of_a_flood_is_left_after_the_longest(
    steps: list[tuple[float, float]], each: int
) -> None:
    thread = Thread(1.0)
    now_s = 1000.0
    for gap_s, part in steps:
        now_s += gap_s
        thread.part = part
        for _ in range(each):
            pause_s = thread.refuse(now_s)
            assert pause_s == CLOSE or 0.0 <= pause_s <= MOST_S
    after_s = now_s + MOST_S + FREE / RATE
    assert thread.refuse(after_s) == 0.0


def test_clients_that_use_a_connection_for_each_refusal_are_told_to_close_and_kept_no_longer() -> None:
    thread = Thread(1.0)
    refusals = [thread.refuse(number / 5000) for number in range(50_000)]
    pauses = [pause_s for pause_s in refusals if pause_s != CLOSE]
    assert max(pauses) <= MOST_S
    # Kept at any time: at most those whose pause has not ended.
    assert len(pauses) == pytest.approx(10 * RATE, rel=0.2)  # the rest of ten seconds of them was closed
