"""Whether a request may enter a model's queue: bounds, forecast and Retry-After. Decides only.

No clock, memory or HTTP here: callers pass numbers in, so that each case is a plain unit test.

Rows in the line: a request of more rows than a batch may have is run a batch at a time between the others
(worker/instance_loop.py), so that it stands in their way with one batch, and counts as that, in bytes too.
"""

from dataclasses import dataclass
from typing import NamedTuple

from foldserve.service.errors import DeadlinePassed, QueueFull, TooLarge
from foldserve.service.ipc.run_time import UNKNOWN, RunTime

_UNKNOWN_RETRY_S = 1.0


@dataclass(frozen=True)
class Bounds:
    """What one model's queue may hold, over all API servers, running batches included.

    max_request_rows: of one request; None = any number.
    """

    max_rows: int
    max_bytes: int
    max_request_rows: int | None = None


class Load(NamedTuple):
    """What a model's queue holds now, and how quickly it is served.

    rows: in the line. large: whether a large request of the same API server is among them.
    run_time: what a batch takes at best. max_batch_size: in rows. instances: how many take from the queue, over all
    workers.
    """

    rows: int
    nbytes: int
    max_batch_size: int
    instances: int
    run_time: RunTime = UNKNOWN
    large: bool = False

    def wait_s(self, rows: int) -> float:
        """Seconds until a request of `rows` rows behind this load is answered at best: 0 while nothing was measured.

        At best, because a request is refused on it: the rows that wait may fill every batch, every instance may take
        its part, and what is run already may be over in a moment.
        """
        in_line = max(0, self.rows - self.begun) + min(rows, self.max_batch_size)
        return max(self.time_for(in_line) if self.run_time.known else 0.0, self.own_s(rows))

    @property
    def begun(self) -> int:
        """Rows that may be in batches under way."""
        return self.max_batch_size * self.instances

    def own_s(self, rows: int) -> float:
        """Seconds that its own rows take at best, one batch after the other."""
        batches, rest = divmod(rows, self.max_batch_size)
        run = self.run_time
        return (batches * run.of(self.max_batch_size) + (run.of(rest) if rest else 0)) / 1e9

    def row_s(self) -> float:
        """Seconds per row in the line, with full batches: 0 while nothing was measured."""
        return self.run_time.of(self.max_batch_size) / 1e9 / (self.max_batch_size * self.instances)

    def time_for(self, rows: int) -> float:
        """Seconds in which `rows` rows leave the queue; 1 while nothing was measured."""
        return rows * self.row_s() if self.run_time.known else _UNKNOWN_RETRY_S


def is_large(rows: int, nbytes: int, max_batch_size: int, bounds: Bounds) -> bool:
    """Whether a request is more than a batch may have, or so large that a busy queue would never have room for it."""
    return (
        rows > max_batch_size
        or nbytes > bounds.max_bytes
        or (rows > 1 and (rows * 2 > bounds.max_rows or nbytes * 2 > bounds.max_bytes))
    )


def in_line(rows: int, nbytes: int, max_batch_size: int) -> tuple[int, int]:
    """The rows and bytes with which a request stands in the line."""
    return (rows, nbytes) if rows <= max_batch_size else (max_batch_size, nbytes * max_batch_size // rows)


def admit(
    model: str,
    rows: int,
    nbytes: int,
    load: Load,
    bounds: Bounds,
    budget_s: float | None,
    doubt: bool = False,
) -> bool:
    """Raise unless a request of `rows` rows and `nbytes` bytes may enter.

    What is alone is always let in: a bound may be smaller than what it bounds, and a forecast that is wrong can only be
    corrected by a run.

    Args:
        budget_s: seconds until its deadline, or None.
        doubt: whether the forecast is to be put to the test. What was measured may be another kind of request (one with
            larger dims), or wrong in a way that nobody thought of: who is let in against it now and then corrects it.
    Returns: whether the request is let in against the forecast.
    Raises: TooLarge when it never could; QueueFull with the time after which there should be room; DeadlinePassed when
        the forecast says that the answer cannot be there in time, or that time is over.
    """
    if bounds.max_request_rows is not None and rows > bounds.max_request_rows:
        raise TooLarge(
            f"the request has {rows} rows; model {model!r} takes at most {bounds.max_request_rows} in one request "
            "(queue.max_rows_per_request); send them in several requests"
        )
    if budget_s is not None and budget_s <= 0.0:
        raise DeadlinePassed.after(None)
    if not load.rows:
        return False
    line_rows, line_bytes = in_line(rows, nbytes, load.max_batch_size)
    # A large request has a place of its own in the line: among many small ones it would never find room.
    has_a_place = is_large(rows, nbytes, load.max_batch_size, bounds) and not load.large
    if load.rows + line_rows > bounds.max_rows and not has_a_place:
        raise QueueFull(
            f"model {model!r} has {load.rows} rows waiting and takes at most {bounds.max_rows}; "
            f"these {rows} do not fit; try again after the time in Retry-After",
            retry_after_s=load.time_for(load.rows + line_rows - bounds.max_rows),
        )
    if load.nbytes + line_bytes > bounds.max_bytes and not has_a_place:
        raise QueueFull(
            f"model {model!r} has {load.nbytes} bytes waiting and takes at most {bounds.max_bytes}; "
            f"these {nbytes} do not fit; try again after the time in Retry-After",
            retry_after_s=load.time_for(max(1, load.rows // 2)),
        )
    if budget_s is not None:
        forecast_s = load.wait_s(rows)
        if forecast_s > budget_s and doubt:
            return True
        if forecast_s > budget_s:
            raise DeadlinePassed(
                f"model {model!r} would answer in about {forecast_s * 1000:.0f} ms, after the {budget_s * 1000:.0f} ms "
                "that the request allows; allow more time (X-Timeout-Ms) or try again later"
            )
    return False
