"""How much one place in the code may log: the first records whole, some more in short, then a count.

What fails for one request fails for thousands, and a client decides how often. So each place (the line that logs) has
a share of every INTERVAL_S: FULL records as they are, SHORT more without their tracebacks, and for all others one line
at the interval's end that says how many there were. An id that a client was given is never left out: it stands in that
line, which comes earlier when it is full.

Knows nothing of where lines go (records.py).
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

INTERVAL_S: Final = 10.0
FULL: Final = 3
SHORT: Final = 17
_IDS_CHARS: Final = 3000
"""Of ids in one line."""

ALWAYS: Final = {"always": True}
"""`extra` of a record that is written however many there are: what is served bounds them, not clients."""


def with_id(error_id: str) -> dict[str, object]:
    """`extra` of a record whose id a client was given, with the hint that the log says more."""
    return {"error_id": error_id}


@dataclass
class _Place:
    """What one place has logged in the present interval. last: the latest of the records left out."""

    since_s: float
    records: int = 0
    left_out: int = 0
    ids: list[str] = field(default_factory=list)
    ids_chars: int = 0
    last: logging.LogRecord | None = None


class Limits:
    """Decides record by record. Thread-safe.

    summarise: called with the last record that was left out, and with the line that stands for it and its like.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.summarise: Callable[[logging.LogRecord, str], None] = lambda record, text: None
        self._clock = clock
        self._begin()
        # What the parent left out is its own to tell; its timer has no thread in a child, and its lock may be held.
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        """Nothing was logged yet in this process."""
        self._places: dict[tuple[str, int], _Place] = {}
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def admit(self, record: logging.LogRecord) -> Literal["full", "short"] | None:
        """How the record is to be written; None = not now."""
        if getattr(record, "always", False):
            return "full"
        with self._lock:
            now_s = self._clock()
            key = (record.pathname, record.lineno)
            place = self._places.setdefault(key, _Place(now_s))
            over = now_s - place.since_s >= INTERVAL_S
            summary = self._close(place, now_s) if over else None
            place.records += 1
            verdict: Literal["full", "short"] | None = "full"
            if place.records > FULL + SHORT:
                verdict = None
                summary = summary or self._leave_out(place, record)
            elif place.records > FULL and record.exc_info:
                verdict = "short"
        if summary:
            self.summarise(*summary)
        return verdict

    def flush(self) -> None:
        """Write the lines of all places that left out anything, now."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            summaries = [self._summary(place) for place in self._places.values() if place.left_out]
        for summary in summaries:
            self.summarise(*summary)

    def _leave_out(self, place: _Place, record: logging.LogRecord) -> tuple[logging.LogRecord, str] | None:
        place.left_out += 1
        # Without what holds a failed run's frames, and in them a model's memory.
        place.last = logging.makeLogRecord(
            {**record.__dict__, "args": (), "exc_info": None, "exc_text": None}
        )
        error_id = getattr(record, "error_id", "")
        if error_id:
            place.ids.append(error_id)
            place.ids_chars += len(error_id) + 1
        if self._timer is None:
            self._timer = threading.Timer(INTERVAL_S, self.flush)
            self._timer.daemon = True
            with contextlib.suppress(
                RuntimeError
            ):  # no thread to be had: the next record's turn writes the line
                self._timer.start()
        return self._summary(place) if place.ids_chars > _IDS_CHARS else None

    def _close(self, place: _Place, now_s: float) -> tuple[logging.LogRecord, str] | None:
        summary = self._summary(place) if place.left_out else None
        place.since_s, place.records = now_s, 0
        return summary

    @staticmethod
    def _summary(place: _Place) -> tuple[logging.LogRecord, str]:
        record = place.last
        assert record is not None
        ids = f"; their ids: {' '.join(place.ids)}" if place.ids else ""
        text = f"{place.left_out} more like the ones before, left out: {str(record.msg)[:200]!r}{ids}"
        place.left_out, place.ids, place.ids_chars, place.last = 0, [], 0, None
        return record, text
