"""Whether a request may enter a model's queue: bounds, forecast and Retry-After. Decides only.

No clock, memory or HTTP here: callers pass numbers in, so that each case is a plain unit test.

Queue length: a request of more rows than a batch may have is run a batch at a time, between the others
(worker/instance_loop.py). It delays them by one batch, and so counts as one batch, in rows and bytes.
"""

from dataclasses import dataclass
from typing import NamedTuple

from foldserve.service.errors import DeadlinePassed, QueueFull, TooLarge
from foldserve.service.ipc.run_time import UNKNOWN, RunTime

_UNKNOWN_RETRY_S = 1.0


@dataclass(frozen=True)
class Bounds:
    """What one model's queue may hold, over all API servers, running batches included.

    max_request_rows: rows of one request; None = any number.
    """

    max_rows: int
    max_bytes: int
    max_request_rows: int | None = None


class Load(NamedTuple):
    """What a model's queue holds now, and how quickly it is served.

    rows, nbytes: queued, a large request counted as one batch. large: whether a large request of the same API server
    is among them. run_time: what a batch takes at best. max_batch_size: in rows. instances: how many serve the queue,
    over all workers.
    """

    rows: int
    nbytes: int
    max_batch_size: int
    instances: int
    run_time: RunTime = UNKNOWN
    large: bool = False

    def wait_s(self, rows: int) -> float:
        """Seconds until a request of `rows` rows behind this load is answered at best: 0 while nothing was measured.

        At best, because a request is refused on it: it assumes that the waiting rows fill every batch, that every
        instance takes its part, and that the batches under way end in a moment.
        """
        rows_ahead = max(0, self.rows - self.begun) + min(rows, self.max_batch_size)
        return max(self.time_for(rows_ahead) if self.run_time.known else 0.0, self.own_s(rows))

    @property
    def begun(self) -> int:
        """Rows that may be in running batches."""
        return self.max_batch_size * self.instances

    def own_s(self, rows: int) -> float:
        """Seconds that a request's own rows take at best, one batch after the other."""
        batches, rest = divmod(rows, self.max_batch_size)
        run = self.run_time
        return (batches * run.of(self.max_batch_size) + (run.of(rest) if rest else 0)) / 1e9

    def row_s(self) -> float:
        """Seconds per queued row, with full batches: 0 while nothing was measured."""
        return self.run_time.of(self.max_batch_size) / 1e9 / (self.max_batch_size * self.instances)

    def time_for(self, rows: int) -> float:
        """Seconds in which `rows` rows leave the queue; 1 while nothing was measured."""
        return rows * self.row_s() if self.run_time.known else _UNKNOWN_RETRY_S


def is_large(rows: int, nbytes: int, max_batch_size: int, bounds: Bounds) -> bool:
    """Whether a request has more rows than a batch, or is so large that a busy queue would never have room for it."""
    return (
        rows > max_batch_size
        or nbytes > bounds.max_bytes
        or (rows > 1 and (rows * 2 > bounds.max_rows or nbytes * 2 > bounds.max_bytes))
    )


def queue_share(rows: int, nbytes: int, max_batch_size: int) -> tuple[int, int]:
    """The rows and bytes that a request counts in the queue."""
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

    Into an empty queue it always may: a bound may be smaller than a single request, and a forecast that is wrong can
    only be corrected by a run.

    Args:
        budget_s: seconds until its deadline, or None.
        doubt: admit the request even against the forecast. What was measured may be another kind of request (one with
            larger dims), or no longer true; a request that is admitted now and then corrects it.
    Returns: whether the request is admitted against the forecast.
    Raises: TooLarge when it can never be admitted; QueueFull, with the time after which there should be room;
        DeadlinePassed when the forecast says that the answer would be too late, or the deadline has passed.
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
    line_rows, line_bytes = queue_share(rows, nbytes, load.max_batch_size)
    # One large request is admitted beside a full queue: among many small ones it would never find room.
    is_reserved = is_large(rows, nbytes, load.max_batch_size, bounds) and not load.large
    if load.rows + line_rows > bounds.max_rows and not is_reserved:
        raise QueueFull(
            f"model {model!r} has {load.rows} rows waiting and takes at most {bounds.max_rows}; "
            f"these {rows} do not fit; try again after the time in Retry-After",
            retry_after_s=load.time_for(load.rows + line_rows - bounds.max_rows),
        )
    if load.nbytes + line_bytes > bounds.max_bytes and not is_reserved:
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
