"""Who holds how much of a bounded memory, and who gives way."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.service.inference.holdings import STALLED_S, Holding, Holdings


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Holder:
    """A holder that knows whether it gave way."""

    def __init__(self, of: Holdings, nbytes: int = 0) -> None:
        self.gone = 0
        self.holding: Holding = of.open(self._on_evicted)
        if nbytes:
            assert self.holding.reserve(nbytes)

    def _on_evicted(self) -> None:
        self.gone += 1


def test_what_is_held_is_bounded_and_comes_back() -> None:
    of = Holdings(100, Clock())
    one, other = Holder(of, 50), Holder(of, 50)
    assert not other.holding.reserve(1)
    assert (of.used_bytes, one.gone, other.gone) == (100, 0, 0)
    one.holding.end()
    assert of.used_bytes == 50
    assert other.holding.reserve(50)
    other.holding.end()
    other.holding.end()
    assert (of.used_bytes, len(of)) == (0, 0)


def test_a_modest_newcomer_finds_room_and_who_stood_still_longest_above_the_share_gives_way() -> None:
    clock = Clock()
    of = Holdings(100, clock)
    first, second, small = Holder(of, 45), Holder(of, 45), Holder(of, 5)
    clock.now_s += STALLED_S / 2
    assert first.holding.reserve(5)  # it moved last: the second gives way
    newcomer = Holder(of)
    assert newcomer.holding.reserve(10)
    assert (first.gone, second.gone, small.gone, newcomer.gone) == (0, 1, 0, 0)
    assert of.used_bytes == 50 + 5 + 10


def test_a_newcomer_that_ends_with_one_who_gives_way_for_it_holds_nothing() -> None:
    clock = Clock()
    of = Holdings(100, clock)
    body: Holding
    # As one connection: what it was sent too early, and the body that is being fed from there.
    sent_early = of.open(lambda: body.end())
    assert sent_early.reserve(60)
    clock.now_s += STALLED_S
    body = of.open(lambda: None)
    assert body.reserve(30)
    assert not body.reserve(20)
    assert (of.used_bytes, len(of), body.nbytes) == (0, 0, 0)


def test_nobody_who_moves_gives_way_to_one_that_takes_more_than_its_share() -> None:
    of = Holdings(100, Clock())
    holders = [Holder(of, 30) for _ in range(3)]
    assert not Holder(of).holding.reserve(35)
    assert not any(holder.gone for holder in holders)


def test_who_has_stalled_gives_way_to_anybody_the_longest_first_and_no_more_than_are_needed() -> None:
    clock = Clock()
    of = Holdings(100, clock)
    holders = [Holder(of, 20) for _ in range(5)]
    holders[0].holding.moved()
    clock.now_s += STALLED_S
    assert Holder(of).holding.reserve(40)
    assert [holder.gone for holder in holders] == [0, 1, 1, 0, 0]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 60), st.floats(0, 3)), max_size=200))
def test_whatever_comes_the_bound_holds_and_the_first_bytes_of_a_newcomer_find_room(
    moves: list[tuple[int, int, float]],
) -> None:
    clock = Clock()
    of = Holdings(100, clock)
    holders: dict[int, Holder] = {}
    for who, nbytes, pause_s in moves:
        clock.now_s += pause_s
        holder = holders.get(who)
        if holder is None or holder.gone:
            holder = holders[who] = Holder(of)
        before, share = holder.holding.nbytes, 100 // len(of)
        taken = holder.holding.reserve(nbytes)
        assert holder.gone == 0
        assert holder.holding.nbytes == before + (nbytes if taken else 0)
        assert of.used_bytes == sum(one.holding.nbytes for one in holders.values()) <= 100
        assert all(one.gone <= 1 and not (one.gone and one.holding.nbytes) for one in holders.values())
        if before + nbytes <= share:
            assert taken


@pytest.mark.parametrize("clients", [1, 3, 50])
def test_however_many_connections_are_filled_another_is_served(clients: int) -> None:
    of = Holdings(1000, Clock())
    hogs = [Holder(of) for _ in range(clients)]

    def fill(by: Callable[[Holder], int]) -> None:
        for hog in hogs:
            while not hog.gone and hog.holding.reserve(by(hog)):
                pass

    fill(lambda hog: 7)
    assert of.used_bytes > 900
    other = Holder(of)
    share = 1000 // (len(of))
    for _ in range(share):
        assert other.holding.reserve(1)
        fill(lambda hog: 1)  # they take whatever becomes free
    assert other.gone == 0
