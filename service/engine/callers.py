"""Whether a caller's own limits let a request into a queue: rows per second, and its share of the queue."""

from foldserve.service.access.quotas import Quota
from foldserve.service.engine.admission import Load, queue_share
from foldserve.service.engine.model_queue import ModelQueue
from foldserve.service.errors import QueueFull, RateLimited


def check_quota(quota: Quota, queue: ModelQueue, load: Load, rows: int, now_ns: int) -> None:
    """Raise unless a request of so many rows is within the limits.

    Who has nothing waiting is let in however many rows it brings, as into an empty queue (admission.py).

    Args:
        load: the queue's, over all callers. now_ns: CLOCK_MONOTONIC.
    Raises: QueueFull, RateLimited, with the time after which there should be room.
    """
    wait_s = quota.wait_s(rows, now_ns)
    if wait_s > 0:
        raise RateLimited(
            f"the key of {quota.name!r} may ask for {quota.rows_per_s:g} rows per second, and has asked for them; try "
            "again after the time in Retry-After",
            retry_after_s=wait_s,
        )
    if not quota.queue_share:
        return
    line_rows, _ = queue_share(rows, 0, queue.max_batch_size)
    waiting, most = quota.waiting_rows(queue.row), quota.most_rows(queue.bounds.max_rows)
    if waiting and waiting + line_rows > most:
        raise QueueFull(
            f"the key of {quota.name!r} has {waiting} rows waiting for model {queue.model!r} and may have {most}; "
            f"these {rows} do not fit; try again after the time in Retry-After",
            retry_after_s=load.time_for(waiting + line_rows - most),
        )
