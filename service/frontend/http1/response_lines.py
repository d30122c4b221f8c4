"""Parts of an answer's head that many answers share: each is made once, when the first of them needs it."""

import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Final

_MOST_HEADERS: Final = 256
"""Sets of headers that are kept as lines. When they are full, they start anew."""


class ResponseLines:
    """Of one API server. No timers: an idle server sleeps. clock: seconds since the epoch."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._now_s = -1
        self._date_value = b""
        self._date = b""
        self._gather_s = self._run_s = self._scatter_s = -1.0
        self._batch_timing = b""
        self._headers: dict[tuple[tuple[str, str], ...], bytes] = {}

    def date(self) -> bytes:
        """The Date line of this second, with its end."""
        now_s = int(self._clock())
        if now_s != self._now_s:
            self._now_s = now_s
            self._date_value = formatdate(now_s, usegmt=True).encode()
            self._date = b"date: %b\r\n" % self._date_value
        return self._date

    def date_value(self) -> bytes:
        """What the Date line says."""
        self.date()
        return self._date_value

    def batch_timing(self, gather_s: float, run_s: float, scatter_s: float) -> bytes:
        """What Server-Timing says of the stages that all requests of a batch share, which are answered one after the
        other."""
        if gather_s != self._gather_s or run_s != self._run_s or scatter_s != self._scatter_s:
            self._gather_s, self._run_s, self._scatter_s = gather_s, run_s, scatter_s
            self._batch_timing = b"gather;dur=%.3f, run;dur=%.3f, scatter;dur=%.3f, " % (
                gather_s * 1e3,
                run_s * 1e3,
                scatter_s * 1e3,
            )
        return self._batch_timing

    def headers(self, headers: tuple[tuple[str, str], ...]) -> bytes:
        """The lines of these headers, which are those of many answers."""
        lines = self._headers.get(headers)
        if lines is None:
            if len(self._headers) == _MOST_HEADERS:
                self._headers.clear()
            lines = self._headers[headers] = header_lines(headers)
        return lines


def header_lines(headers: tuple[tuple[str, str], ...]) -> bytes:
    """Headers as they go over the wire."""
    return b"".join([f"{name.lower()}: {value}\r\n".encode("latin-1") for name, value in headers])
