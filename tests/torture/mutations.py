"""Bytes that nearly are what they were: the mutations of both fuzzers, drawn from a seeded generator."""

from collections.abc import Sequence
from random import Random
from typing import Final

LIMIT_BYTES: Final = 64 * 1024
"""No mutation is longer."""
_REPEATS: Final = (2, 10, 100, 5_000)
_MUCH_BYTES: Final = 16_000


def mutated(seeds: Sequence[bytes], tokens: Sequence[bytes], chosen: Random) -> bytes:
    """One of the seeds, changed in up to four places. tokens: what the format finds interesting."""
    data = chosen.choice(seeds)
    for _ in range(chosen.choice((0, 1, 1, 1, 2, 2, 4))):
        data = chosen.choice(_WAYS)(data, seeds, tokens, chosen)[:LIMIT_BYTES]
    return data


def _span(data: bytes, chosen: Random) -> tuple[int, int]:
    start = chosen.randint(0, len(data))
    return start, min(len(data), start + chosen.choice((1, 1, 2, 4, 16, 64)))


def _flip(data: bytes, _: Sequence[bytes], __: Sequence[bytes], chosen: Random) -> bytes:
    start, _end = _span(data, chosen)
    return data[:start] + bytes([chosen.randrange(256)]) + data[start + 1 :]


def _drop(data: bytes, _: Sequence[bytes], __: Sequence[bytes], chosen: Random) -> bytes:
    start, end = _span(data, chosen)
    return data[:start] + data[end:]


def _cut(data: bytes, _: Sequence[bytes], __: Sequence[bytes], chosen: Random) -> bytes:
    return data[: chosen.randint(0, len(data))]


def _repeat(data: bytes, _: Sequence[bytes], __: Sequence[bytes], chosen: Random) -> bytes:
    start, end = _span(data, chosen)
    return data[:end] + data[start:end] * chosen.choice(_REPEATS) + data[end:]


def _swap(data: bytes, _: Sequence[bytes], __: Sequence[bytes], chosen: Random) -> bytes:
    (a, b), (c, d) = sorted((_span(data, chosen), _span(data, chosen)))
    return data if c < b else data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def _insert(data: bytes, _: Sequence[bytes], tokens: Sequence[bytes], chosen: Random) -> bytes:
    start, _end = _span(data, chosen)
    return data[:start] + chosen.choice(tokens) + data[start:]


def _replace(data: bytes, _: Sequence[bytes], tokens: Sequence[bytes], chosen: Random) -> bytes:
    """A token in the place of another one, if there is any."""
    there = [token for token in tokens if token and token in data]
    if not there:
        return _insert(data, _, tokens, chosen)
    return data.replace(chosen.choice(there), chosen.choice(tokens), chosen.choice((1, -1)))


def _number(data: bytes, _: Sequence[bytes], __: Sequence[bytes], chosen: Random) -> bytes:
    """Another digit, or a few more of them."""
    places = [i for i, byte in enumerate(data[:4096]) if chr(byte).isdecimal()]
    if not places:
        return data
    place = chosen.choice(places)
    digits = b"".join(b"%d" % chosen.randrange(10) for _ in range(chosen.choice((1, 1, 2, 19, 400))))
    return data[:place] + digits + data[place + 1 :]


def _splice(data: bytes, seeds: Sequence[bytes], _: Sequence[bytes], chosen: Random) -> bytes:
    other = chosen.choice(seeds)
    return data[: chosen.randint(0, len(data))] + other[chosen.randint(0, len(other)) :]


def _blow_up(data: bytes, _: Sequence[bytes], tokens: Sequence[bytes], chosen: Random) -> bytes:
    """Very much of one thing, and then something else: where a pattern tries all ways to share it out."""
    start, _end = _span(data, chosen)
    much = chosen.choice((chosen.choice(tokens), data[start : start + 1], b" "))
    return data[:start] + much * (_MUCH_BYTES // max(1, len(much))) + chosen.choice(tokens) + data[start:]


_WAYS: Final = (_flip, _drop, _cut, _repeat, _blow_up, _swap, _insert, _replace, _replace, _number, _splice)
