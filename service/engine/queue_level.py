"""One priority level of a model's queue as an API server sees it: its tickets, and what a request of it waits for.

Owned by the event loop thread; the Dispatcher sets the counts.
"""

from foldserve.service.engine.admission import Bounds, Load
from foldserve.service.ipc.ticket_queue import TicketWriter


class View:
    """What the scoreboard says of a queue; valid for one turn of the event loop.

    rows, nbytes: queued by the other API servers, of its level and of those before it. row_s, full_s: seconds per
    queued row, and for a full batch. begun: rows that may be in running batches. small_rows: requests of at most so
    many rows are not large.
    """

    __slots__ = ("begun", "full_s", "nbytes", "ready", "row_s", "rows", "small_rows")

    def __init__(self, ready: bool, load: Load, own_rows: int, own_bytes: int, bounds: Bounds) -> None:
        self.ready = ready
        self.rows, self.nbytes = load.rows - own_rows, load.nbytes - own_bytes
        self.full_s = load.run_time.of(load.max_batch_size) / 1e9
        self.row_s = load.row_s()
        self.begun = load.begun
        most = bounds.max_request_rows
        self.small_rows = load.max_batch_size if most is None else min(load.max_batch_size, most)


class QueueLevel:
    """A level of one model version's queue.

    rows, nbytes: what the requests of this level and of those before it count in the queue (admission.queue_share):
    what a request of it waits for. large: how many of those are large.

    Args:
        index: its place among the levels, 0 for the one that is served first.
        writer: this API server's end of the pipe of its tickets.
    """

    def __init__(self, index: int, writer: TicketWriter) -> None:
        self.index = index
        self.writer = writer
        self.outbox = bytearray()
        """Tickets of this turn of the event loop."""
        self.view: View | None = None
        self.rows = 0
        self.nbytes = 0
        self.large = 0

    def __repr__(self) -> str:
        return f"<QueueLevel {self.index}: {self.rows} rows, {self.nbytes} bytes, {self.large} large>"
