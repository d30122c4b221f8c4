"""What came twice within a short while, by its bytes."""

from typing import Generic, TypeVar

V = TypeVar("V")


class RepeatCache(Generic[V]):
    """What came twice within a short while, by its bytes. What comes once is soon forgotten, so that an id which is
    new in each request crowds out nothing. When it is full it starts anew.

    most: entries kept; largest: bytes, longer keys are not kept.
    """

    def __init__(self, most: int, largest: int) -> None:
        self.most = most
        self.largest = largest
        self.kept: dict[bytes, V] = {}
        self.once: dict[bytes, V] = {}

    def add(self, key: bytes, value: V) -> None:
        """It came, and was not kept yet."""
        if len(key) > self.largest:
            return
        if key in self.once:
            del self.once[key]
            if len(self.kept) >= self.most:
                self.kept.clear()
            self.kept[key] = value
            return
        if len(self.once) >= self.most // 4:
            self.once.clear()
        self.once[key] = value
