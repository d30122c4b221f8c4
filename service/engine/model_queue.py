"""One model version's queue as an API server sees it: what bounds it, and what this API server has in it.

A view of one row of the model table (ipc/model_table.py), for as long as the row is of one generation. Owned by the
event loop thread; the Dispatcher sets the counts.
"""

from collections.abc import Callable

from foldserve.service.artifact.pictures import PictureInput
from foldserve.service.engine.admission import Bounds, Load
from foldserve.service.errors import NotReady
from foldserve.service.ipc.model_table import ModelKey
from foldserve.service.ipc.records import GENERATIONS
from foldserve.service.ipc.run_time import UNKNOWN
from foldserve.service.ipc.slots.tensor_layout import TensorLayout
from foldserve.service.ipc.ticket_queue import TicketWriter


class View:
    """What the scoreboard says of a queue; valid for one turn of the event loop.

    rows, nbytes: queued by the other API servers. row_s, full_s: seconds per queued row, and for a full batch.
    begun: rows that may be in running batches. small_rows: requests of at most so many rows are not large.
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


class ModelQueue:
    """One model version's queue.

    requests: in flight. rows, nbytes: what they count in the queue (admission.queue_share); large: how many are large.
    held_bytes: of their inputs. small_rows, small_bytes: a request of no more than these is not large.

    Args:
        key: its row of the model table, and what it is called.
        timeout_s: the longest that a request may take since it was queued.
        instances: how many serve the queue, over all workers.
        max_batch_size: rows that one run takes at most.
        writer: this API server's end of the pipe of tickets.
        labels, image: see codecs.protocol.Served.
    """

    def __init__(
        self,
        key: ModelKey,
        layout: TensorLayout,
        bounds: Bounds,
        timeout_s: float,
        instances: int,
        max_batch_size: int,
        writer: TicketWriter,
        labels: tuple[str, ...] = (),
        image: PictureInput | None = None,
    ) -> None:
        self.key = key
        self.row = key.row
        self.generation = key.generation
        self.ticket_generation = key.generation % GENERATIONS
        self.model = key.model
        self.version = key.version
        self.layout = layout
        self.bounds = bounds
        self.timeout_s = timeout_s
        self.instances = instances
        self.max_batch_size = max_batch_size
        self.labels = labels
        self.image = image
        self.writer = writer
        self.outbox = bytearray()
        """Tickets of this turn of the event loop."""
        self.view: View | None = None
        self.requests = 0
        self.rows = 0
        self.nbytes = 0
        self.large = 0
        self.rendering = 0
        """Requests that were run, and whose responses the codec process is rendering: it still needs the version."""
        self.held_bytes = 0
        self.small_rows = min(max_batch_size, bounds.max_rows // 2)
        self.small_bytes = bounds.max_bytes // 2
        self.doubted_ns = 0
        self.forecast = UNKNOWN
        self.forecast_ns = 0
        self.row_output_bytes: dict[tuple[int, ...], int] = {}
        """What a row's outputs needed last time, by the dynamic dims of its inputs (output_sizes.py)."""
        self.drained: Callable[[], None] | None = None
        """Called when the last request has left a queue that is closed."""

    def __repr__(self) -> str:
        closed = ", closed" if self.closed else ""
        return (
            f"<ModelQueue {self.model}/{self.version} in row {self.row}.{self.generation}: {self.requests} requests, "
            f"{self.rows} rows, {self.nbytes} bytes, {self.large} large{closed}>"
        )

    @property
    def closed(self) -> bool:
        """Whether the model version is being unloaded, or is: its row may be another's already."""
        return self.drained is not None


def unloaded(queue: ModelQueue) -> NotReady:
    """The error for a request whose model version was unloaded while its body came."""
    return NotReady(
        f"model {queue.model!r} version {queue.version} was unloaded while this request came; GET /info lists what is "
        "served"
    )
