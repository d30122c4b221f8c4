"""The bound on bodies that arrive in parts."""

import pytest

from service.errors import QueueFull
from service.receiving import Receiving


def test_bodies_hold_up_to_the_bound_together_and_give_back_once() -> None:
    receiving = Receiving(limit_bytes=100, limit=10)
    one, two = receiving.begin(), receiving.begin()
    one.hold(60)
    two.hold(40)
    with pytest.raises(QueueFull, match="hold 100 of 100 bytes; these 1 do not fit"):
        two.hold(1)
    one.end()
    one.end()
    assert (receiving.held_bytes, receiving.bodies) == (40, 1)
    two.hold(60)


def test_number_of_bodies_is_bounded() -> None:
    receiving = Receiving(limit_bytes=100, limit=2)
    bodies = [receiving.begin() for _ in range(2)]
    with pytest.raises(QueueFull, match="2 request bodies are being received"):
        receiving.begin()
    bodies[0].end()
    receiving.begin()


def test_the_only_body_may_be_larger_than_the_bound() -> None:
    receiving = Receiving(limit_bytes=100, limit=2)
    only = receiving.begin()
    only.hold(90)
    only.hold(90)
    with pytest.raises(QueueFull):
        receiving.begin().hold(1)
