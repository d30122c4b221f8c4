"""Whether a request may enter a model's queue: bounds, forecast and Retry-After. Decides only.

No clock, memory or HTTP here: callers pass numbers in, so that each case is a plain unit test.
"""

from dataclasses import dataclass
from typing import NamedTuple

from service.errors import DeadlinePassed, QueueFull


@dataclass(frozen=True)
class Bounds:
    """What one model's queue may hold, over all API servers, running batches included."""

    max_rows: int
    max_bytes: int


class Load(NamedTuple):
    """What a model's queue holds now, and how quickly it is served.

    batch_s, batch_rows: moving averages over recent batches, 0 before the first. max_batch_size: in rows.
    instances: how many take from the queue, over all workers.
    """

    rows: int
    nbytes: int
    batch_s: float
    batch_rows: float
    max_batch_size: int
    instances: int

    def wait_s(self, rows: int) -> float:
        """Seconds until `rows` more rows behind this load are answered at best: 0 while nothing was measured.

        At best, because a request is refused on it: the rows that wait may fill every batch, however small the
        recent ones were.
        """
        return max((self.rows + rows) * self.row_s(), self.batch_s)

    def row_s(self) -> float:
        """Seconds per row that waits, with full batches: 0 while nothing was measured."""
        if not self.batch_rows:
            return 0.0
        return self.batch_s / (max(self.batch_rows, self.max_batch_size) * self.instances)

    def time_for(self, rows: int) -> float:
        """Seconds in which `rows` rows leave the queue; 1 while nothing was measured."""
        return rows / (self.batch_rows * self.instances) * self.batch_s if self.batch_rows else 1.0


def admit(model: str, rows: int, nbytes: int, load: Load, bounds: Bounds, budget_s: float | None) -> None:
    """Raise unless a request of `rows` rows and `nbytes` bytes may enter.

    Args:
        budget_s: seconds until its deadline, or None.
    Raises: QueueFull with the time after which there should be room; DeadlinePassed when the forecast says
        that the answer cannot be there in time.
    """
    # A request larger than the whole bound is let in when nothing else is there: it could never enter otherwise.
    if load.rows and load.rows + rows > bounds.max_rows:
        excess = load.rows + rows - bounds.max_rows
        raise QueueFull(
            f"model {model!r} has {load.rows} rows waiting and takes at most {bounds.max_rows}; "
            f"these {rows} do not fit; try again after the time in Retry-After",
            retry_after_s=load.time_for(excess),
        )
    if load.nbytes and load.nbytes + nbytes > bounds.max_bytes:
        raise QueueFull(
            f"model {model!r} has {load.nbytes} bytes waiting and takes at most {bounds.max_bytes}; "
            f"these {nbytes} do not fit; try again after the time in Retry-After",
            retry_after_s=load.time_for(max(1, load.rows // 2)),
        )
    if budget_s is not None:
        forecast = load.wait_s(rows)
        if forecast > budget_s:
            raise DeadlinePassed(
                f"model {model!r} would answer in about {forecast * 1000:.0f} ms, after the {budget_s * 1000:.0f} ms "
                "that the request allows; allow more time (X-Timeout-Ms) or try again later"
            )
