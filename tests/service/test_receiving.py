"""The bound on bodies that arrive in parts."""

import pytest

from service.body import BodyMemory
from service.errors import QueueFull
from service.receiving import Receiving


def test_bodies_hold_up_to_the_bound_together_with_the_long_ways() -> None:
    memory = BodyMemory(100)
    receiving = Receiving(memory, limit=10)
    memory.take(30)
    one = receiving.begin(60)
    with pytest.raises(QueueFull, match="hold 90 of 100 bytes, and 11 more do not fit"):
        receiving.begin(11)
    one.end()
    assert (memory.used_bytes, receiving.bodies) == (30, 0)
    receiving.begin(70)


def test_number_of_bodies_is_bounded() -> None:
    receiving = Receiving(BodyMemory(100), limit=2)
    bodies = [receiving.begin(1) for _ in range(2)]
    with pytest.raises(QueueFull, match="2 request bodies are being received"):
        receiving.begin(1)
    bodies[0].end()
    receiving.begin(1)
