"""What becomes of arrays that are written: a body and the headers that describe it. Plain data."""

from typing import NamedTuple


class Encoded(NamedTuple):
    """A body, with its media type and the headers that describe it."""

    media_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class LaidOut(NamedTuple):
    """A body whose numbers still lie where they were: prefix and numbers, one after the other."""

    media_type: str
    prefix: bytes
    numbers: memoryview
    headers: tuple[tuple[str, str], ...]
