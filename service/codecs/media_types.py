"""Which of the three body types a request has, and which its answer gets.

Pure functions on header values. The rules: the body's type is what Content-Type says, nothing is guessed
from the bytes; the answer has the request's own type unless Accept prefers another.
"""

import enum
import functools
from collections.abc import Iterable
from typing import Final

from foldserve.service.errors import NotAcceptable, UnsupportedMediaType


class BodyType(enum.Enum):
    """A way to write tensors into a body; the value is its media type."""

    JSON = "application/json"
    RAW = "application/octet-stream"
    NPY = "application/x-npy"


_BY_MEDIA_TYPE: Final = {kind.value: kind for kind in BodyType}
_ALL: Final = ", ".join(_BY_MEDIA_TYPE)
# Longer header values are read without the cache, so that clients cannot fill it with big strings.
_CACHED_HEADER_CHARS: Final = 200
# No client of ours needs more; each part of the list costs a few steps of Python.
_ACCEPT_CHARS: Final = 4096


def body_type(content_type: str | None, others: Iterable[str] = ()) -> BodyType:
    """The body type that a Content-Type header names.

    others: what else the model takes, for the text of the error.
    Raises UnsupportedMediaType, with the header to send.
    """
    media_type = (content_type or "").partition(";")[0].strip().lower()
    kind = _BY_MEDIA_TYPE.get(media_type)
    if kind is not None:
        return kind
    if media_type.startswith("application/") and media_type.endswith("+json"):
        return BodyType.JSON
    known = (*_BY_MEDIA_TYPE, *others)
    if media_type == "application/x-www-form-urlencoded":
        raise UnsupportedMediaType(
            "Content-Type is application/x-www-form-urlencoded, which `curl -d` sends by default; "
            "for a JSON body add -H 'Content-Type: application/json' "
            f"(for bytes use --data-binary with {' or '.join(known[1:])})"
        )
    got = (
        f"Content-Type {media_type[:100]!r} is not supported"
        if media_type
        else "there is no Content-Type header"
    )
    raise UnsupportedMediaType(f"{got}; expected one of {', '.join(known)}: send the one that the body is in")


def answer_types(accept: str | None, own: BodyType) -> tuple[BodyType, ...]:
    """The types that may carry the answer, best first.

    Args:
        accept: the Accept header; None or empty accepts everything.
        own: the type of the request's body, which wins among equals. The types after the first are those that
            Accept names: what only a wildcard admits is not a second choice, for nobody asked for it.
    Raises: NotAcceptable when Accept admits none of the three, or is too long to be looked at.
    """
    if not accept or accept == "*/*":
        return (own,)
    if len(accept) > _ACCEPT_CHARS:
        raise NotAcceptable(
            f"the Accept header has {len(accept)} characters; expected at most {_ACCEPT_CHARS}: name "
            f"those of {_ALL} that you accept"
        )
    if len(accept) <= _CACHED_HEADER_CHARS:
        return _ranked_cached(accept, own)
    return _ranked(accept, own)


def _ranked(accept: str, own: BodyType) -> tuple[BodyType, ...]:
    ranges = _media_ranges(accept)
    found: list[tuple[float, bool, bool, BodyType]] = []
    for kind in (BodyType.JSON, BodyType.NPY, BodyType.RAW):
        # RFC 9110, 12.5.1: of several ranges that match, the most specific one decides.
        for pattern in (kind.value, "application/*", "*/*"):
            if pattern in ranges:
                if ranges[pattern] > 0:
                    found.append((ranges[pattern], kind is own, pattern == kind.value, kind))
                break
    if not found:
        raise NotAcceptable(
            f"Accept is {accept[:200]!r}; the answer can be one of {_ALL}: accept one of them"
        )
    found.sort(key=lambda entry: entry[:2], reverse=True)
    return tuple(kind for place, (_, _, named, kind) in enumerate(found) if place == 0 or named)


_ranked_cached = functools.lru_cache(maxsize=128)(_ranked)


def _media_ranges(accept: str) -> dict[str, float]:
    """Media range -> q. A q that cannot be read counts as 0: a range with a broken weight is ignored."""
    ranges: dict[str, float] = {}
    for part in accept.split(","):
        media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                try:
                    quality = float(value)
                except ValueError:
                    quality = 0.0
                if not 0.0 <= quality <= 1.0:
                    quality = 0.0
        if media_range:
            ranges[media_range] = max(quality, ranges.get(media_range, 0.0))
    return ranges
