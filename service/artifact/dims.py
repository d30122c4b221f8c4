"""What a manifest says of the sizes of a named dim: its range, its multiple, and whether it depends on another.

Pure. An exported file answers rightly for these sizes alone (models/export/capture/sizes/ finds them), so a request
with another one is refused before it is queued.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class DimRange:
    """least <= size <= most (None: any), and a multiple of multiple_of."""

    least: int = 1
    most: int | None = None
    multiple_of: int = 1

    def takes(self, size: int) -> bool:
        """Whether a dim may have this size."""
        return (
            size >= self.least
            and (self.most is None or size <= self.most)
            and (self.multiple_of == 1 or size % self.multiple_of == 0)
        )

    def near(self, size: int) -> int:
        """A size that the dim may have: the least from this one on, or the largest below."""
        up = -(-max(size, self.least) // self.multiple_of) * self.multiple_of
        return (
            up if self.most is None or up <= self.most else self.most // self.multiple_of * self.multiple_of
        )

    def __str__(self) -> str:
        """As errors say what was expected: `1 to 64`, `at least 8, a multiple of 8`."""
        span = f"at least {self.least}" if self.most is None else f"{self.least} to {self.most}"
        return span if self.multiple_of == 1 else f"{span}, a multiple of {self.multiple_of}"


@dataclass(frozen=True)
class DimLink:
    """The size of the dims named `name` is `times` that of those named `other`, plus `plus`."""

    name: str
    other: str
    times: int
    plus: int

    def size(self, other: int) -> int:
        """What it must be where the other is so large."""
        return self.times * other + self.plus

    def __str__(self) -> str:
        times = f"{self.times} * " if self.times != 1 else ""
        plus = f" {'+' if self.plus > 0 else '-'} {abs(self.plus)}" if self.plus else ""
        return f"{times}{self.other!r}{plus}"
