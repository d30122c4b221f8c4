"""Ranges, multiples and links of dims: what they take, and what they are called."""

import pytest

from foldserve.service.artifact.dims import DimLink, DimRange


@pytest.mark.parametrize(
    ("allowed", "takes", "refuses", "text"),
    [
        (DimRange(), (1, 10**9), (), "at least 1"),
        (DimRange(8, 40), (8, 40), (7, 41), "8 to 40"),
        (DimRange(8, None, 8), (8, 800), (1, 12), "at least 8, a multiple of 8"),
        (DimRange(1, 64, 4), (4, 64), (1, 68), "1 to 64, a multiple of 4"),
    ],
)
def test_a_range_takes_its_bounds_and_nothing_outside(
    allowed: DimRange, takes: tuple[int, ...], refuses: tuple[int, ...], text: str
) -> None:
    assert all(map(allowed.takes, takes))
    assert not any(map(allowed.takes, refuses))
    assert str(allowed) == text


@pytest.mark.parametrize(
    ("allowed", "near_two", "near_hundred"),
    [
        (DimRange(), 2, 100),
        (DimRange(8, 40), 8, 40),
        (DimRange(3, 50, 8), 8, 48),
        (DimRange(1, None, 7), 7, 105),
    ],
)
def test_a_size_near_another_is_one_that_the_range_takes(
    allowed: DimRange, near_two: int, near_hundred: int
) -> None:
    assert (allowed.near(2), allowed.near(100)) == (near_two, near_hundred)


def test_a_link_says_what_a_size_must_be() -> None:
    assert (DimLink("a", "b", 2, 3).size(5), str(DimLink("a", "b", 2, 3))) == (13, "2 * 'b' + 3")
    assert (DimLink("a", "b", 1, -1).size(5), str(DimLink("a", "b", 1, -1))) == (4, "'b' - 1")
