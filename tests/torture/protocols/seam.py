"""What a protocol is to the torture: how a question to a model is written, spoilt, and its answer read.

One file of this folder for each; __init__.py has the table. Nothing here knows how a request is carried: links/.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from random import Random
from typing import Final

import numpy as np

from tests.torture.wire import Answer

JSON: Final = "application/json"


class Wanted(Enum):
    """What a request must get."""

    RIGHT = "200 with its own numbers"
    RIGHT_OR_LATE = "200 with its own numbers, or 504"
    REFUSED = "400"
    FAILED = "500 model_failed, alone of its batch"


class Carried(Enum):
    """By what requests go."""

    HTTP = "HTTP/1.1"
    GRPC = "gRPC"


class Swapped(Exception):
    """The answer says itself that it is another request's."""


@dataclass(frozen=True)
class Asked:
    """A question, however it is put.

    y: its right answer. timeout_ms: for how long it may wait; None: no limit. level: its priority, if it says any.
    """

    model: str
    inputs: dict[str, np.ndarray]
    y: np.ndarray | None
    request_id: str
    wanted: Wanted = Wanted.RIGHT
    timeout_ms: int | None = None
    level: int | None = None


Read = Callable[[Answer, np.ndarray], np.ndarray]
"""The numbers of an answer 200; a tensor like the second is expected.

Raises: ValueError, KeyError, TypeError, Swapped; DecodeError of protobuf."""


@dataclass(frozen=True)
class Request:
    """A question as a protocol puts it.

    kind: Content-Type; none over gRPC. body: or the message. headers: of HTTP. path: of HTTP.
    """

    asked: Asked
    protocol: str
    body: bytes
    read: Read
    path: str = ""
    kind: str = ""
    headers: tuple[str, ...] = ()

    def to_be_refused(self) -> "Request":
        """The same, spoilt by whoever calls this."""
        return replace(self, asked=replace(self.asked, y=None, wanted=Wanted.REFUSED))


@dataclass(frozen=True)
class Protocol:
    """One of them.

    write: a good request. spoil: one that must be refused before it shares a batch.
    tokens: what a fuzzer puts into its bodies. takes: whether it can carry a question.
    """

    name: str
    carried: Carried
    write: Callable[[Asked, Random], Request]
    spoil: Callable[[Asked, Random], Request]
    tokens: tuple[bytes, ...]
    takes: Callable[[Asked], bool] = lambda asked: True


def one_input(asked: Asked) -> bool:
    """Whether the model has one."""
    return len(asked.inputs) == 1


def finite(asked: Asked) -> bool:
    """Whether JSON has words for all numbers of a question and of its answer."""
    known = (*asked.inputs.values(), *([] if asked.y is None else [asked.y]))
    return all(bool(np.isfinite(array).all()) for array in known)


def queue_headers(asked: Asked) -> tuple[str, ...]:
    """How HTTP says how long a request may wait, and with what priority."""
    said = {"x-timeout-ms": asked.timeout_ms, "x-priority": asked.level}
    return tuple(f"{name}: {value}" for name, value in said.items() if value is not None)
