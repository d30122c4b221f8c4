"""Reads the heads of ordinary calls, quickly: the bytes of a head in, what they say out, or None for any doubt.

No second parser of HTTP: it knows one shape, lines of `name: value` that end in CRLF, and of each line it is either
sure or not. Whatever it is not sure of (folded lines, a lone CR or LF, other control characters, bytes above ASCII,
unusual white space, a second line of a name that counts, chunked bodies) goes to uvicorn's parser as it came, which
knows the whole of HTTP. So what is accepted here must be what that parser reads too: method, target, headers, framing.

Most lines of a client are the same in each of its requests, and whole heads often too: what was read before is kept
by its bytes, and equal bytes are not looked at again.
"""

from collections.abc import Iterable
from typing import Final

from foldserve.service.access.gate import WIDE_OPEN, Gate
from foldserve.service.codecs.fast.repeat_cache import RepeatCache
from foldserve.service.frontend.http1.heads.cache import ID, KEY, Field, Head, Route, field_of, head_of

_LARGEST_HEAD: Final = 16_384
"""Bytes: longer ones are not read here."""
_MOST_LINES: Final = 256
"""Lines, likewise."""
_TOKEN: Final = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_VISIBLE: Final = bytes(range(0x20, 0x7F))


class HeadReader:
    """Of one API server.

    gate: what is asked of a head. One that was let in is let in until the keys change: who changes them calls serve().
    """

    def __init__(self, routes: Iterable[Route], gate: Gate = WIDE_OPEN) -> None:
        self.gate = gate
        self.heads: RepeatCache[Head]
        self.lines: RepeatCache[Field]
        self.serve(routes)

    def serve(self, routes: Iterable[Route]) -> None:
        """Have these targets of the fast path from now on, and no others: what heads said is forgotten."""
        self.heads = RepeatCache(1024, 1024)
        self.lines = RepeatCache(1024, 4096)
        self._new: dict[bytes, Route] = {}
        self._old: dict[bytes, Route] = {}
        for route in routes:
            self._new[b"POST %b HTTP/1.1" % route.target] = route
            self._old[b"POST %b HTTP/1.0" % route.target] = route

    def read(self, data: bytes, end: int) -> Head | None:
        """What the head in data[:end] says, which ends in an empty line; None when that is for others to tell."""
        if end > _LARGEST_HEAD:
            return None
        head = data[:end]
        known = self.heads.kept.get(head)
        if known is not None:
            return known
        lines = head.split(b"\r\n", _MOST_LINES)
        if len(lines) > _MOST_LINES:
            return None
        first = lines[0]
        route, old = self._new.get(first), False
        if route is None:
            route, old = self._old.get(first), True
            if route is None:
                return None
        fields: list[Field] = []
        kept = self.lines.kept
        for at in range(1, len(lines) - 2):
            line = lines[at]
            field = kept.get(line)
            if field is None:
                field = self._read_line(line)
                if field is None:
                    return None
            fields.append(field)
        found = head_of(route, old, fields, self.gate)
        if found is not None and not found.request_id:
            self.heads.add(head, found)
        return found

    def _read_line(self, line: bytes) -> Field | None:
        """What a line says that was not kept; None when it is not plainly a header."""
        if line.translate(None, _VISIBLE):
            return None
        name, colon, value = line.partition(b":")
        if not colon or not name or name.translate(None, _TOKEN):
            return None
        if value.startswith(b" "):
            value = value[1:]
        if value.startswith(b" ") or value.endswith(b" "):
            return None
        field = field_of(name.lower(), value)
        if field.says != ID and (field.says != KEY or self._is_key(field.value)):
            self.lines.add(line, field)
        return field

    def _is_key(self, digest: bytes) -> bool:
        """Whether a key is known: others, of which a client may send any number, are not kept."""
        keys = self.gate.keys
        return keys is None or keys.find(digest) is not None
