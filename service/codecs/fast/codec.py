"""A quick way for the most common bodies of one model, beside the protocol's own parse() and render().

It takes only what is certain to be right and answers None for anything else: the protocol then decides, and says what
is wrong. A test holds that whatever is taken here comes out of the protocol equal.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np


class Schedule(NamedTuple):
    """What a body says of its request's place in the queue. 0 = what the head says, or else the model's config.

    queue_timeout_us: the longest from being queued to the answer. priority: its level, 1 = the first served.
    """

    queue_timeout_us: int = 0
    priority: int = 0


NO_SCHEDULE: Final = Schedule()
"""Of a body that says nothing of it."""
Decoded = tuple[int, bytes | memoryview, Any, Schedule | None]
"""The number of rows, the bytes of the model's only input, what the answer needs, and the body's schedule, None for
NO_SCHEDULE (ParsedRequest)."""
Answer = tuple[str, bytes, tuple[tuple[str, str], ...]]
"""Media type, body and headers."""


class FastCodec:
    """Of a model with one input and one output."""

    @abstractmethod
    def decode(self, body: bytes, options: Sequence[str | None]) -> Decoded | None:
        """What the body says; None when the protocol must look. options: as InferenceProtocol.parse()."""

    def learn(
        self,
        body: bytes,
        options: Sequence[str | None],
        inputs: dict[str, np.ndarray],
        reply: Any,
        schedule: Schedule | None,
    ) -> None:
        """The protocol has looked, and found these inputs, whose shapes the model takes, and nothing but `reply` and
        `schedule` besides."""

    # -- bodies that end in the bytes of the input, which need not be moved: their envelope is what stands before

    def envelope_bytes(self, options: Sequence[str | None]) -> int:
        """The length of the envelope, as the head tells it; 0 when it does not, there is none, or it is longer than any
        that is known."""
        return 0

    def read_envelope(self, envelope: bytes, tensor_bytes: int) -> tuple[int, Any, Schedule | None] | None:
        """What decode() tells, but for the bytes, of a body with so many of the input behind its envelope; None when
        the protocol must look."""
        return None

    def learn_envelope(
        self, envelope: bytes, tensor_bytes: int, rows: int, reply: Any, schedule: Schedule | None
    ) -> None:
        """The protocol has looked, and found so many rows, and nothing but `reply` and `schedule` besides."""

    @abstractmethod
    def encode(self, output: np.ndarray, reply: Any) -> Answer | None:
        """The answer; None when the protocol must look."""
