"""One model version's queue as an API server sees it: what bounds it, and what this API server has in it.

A view of one row of the model table (ipc/model_table.py), for as long as the row is of one generation. Owned by the
event loop thread; the Dispatcher sets the counts.
"""

from collections.abc import Callable, Sequence

from foldserve.service.artifact.pictures import PictureInput
from foldserve.service.engine.admission import Bounds, is_large, queue_share
from foldserve.service.engine.queue_level import QueueLevel
from foldserve.service.errors import BadRequest, NotReady
from foldserve.service.ipc.model_table import ModelKey
from foldserve.service.ipc.records import GENERATIONS
from foldserve.service.ipc.run_time import UNKNOWN
from foldserve.service.ipc.slots.tensor_layout import TensorLayout
from foldserve.service.ipc.ticket_queue import TicketWriter


class ModelQueue:
    """One model version's queue.

    requests: in flight. held_bytes: of their inputs. small_rows, small_bytes: a request of no more than these is not
    large.

    Args:
        key: its row of the model table, and what it is called.
        timeout_s: the longest that a request may take since it was queued.
        instances: how many serve the queue, over all workers.
        max_batch_size: rows that one run takes at most.
        writers: this API server's ends of the pipes of tickets, by priority level.
        labels, image: see codecs.protocol.Served.
        default_level: the index of the level of requests that name none.
    """

    def __init__(
        self,
        key: ModelKey,
        layout: TensorLayout,
        bounds: Bounds,
        timeout_s: float,
        instances: int,
        max_batch_size: int,
        writers: Sequence[TicketWriter],
        labels: tuple[str, ...] = (),
        image: PictureInput | None = None,
        default_level: int = 0,
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
        self.levels = [QueueLevel(index, writer) for index, writer in enumerate(writers)]
        """The first is served first."""
        self.default_level = self.levels[default_level]
        self.requests = 0
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
            f"{self.levels}{closed}>"
        )

    @property
    def closed(self) -> bool:
        """Whether the model version is being unloaded, or is: its row may be another's already."""
        return self.drained is not None

    def count(self, level: int, rows: int, nbytes: int, sign: int) -> int:
        """Count a request that waits or runs (+1), or count it no longer (-1), for all levels that wait for it.

        Returns: the rows that it counts for, with that sign.
        """
        self.held_bytes += sign * nbytes
        large = 0
        small = rows <= self.small_rows and nbytes <= self.small_bytes
        if not small and is_large(rows, nbytes, self.max_batch_size, self.bounds):
            large = sign
            rows, nbytes = queue_share(rows, nbytes, self.max_batch_size)
        for index in range(level, len(self.levels)):
            waiting = self.levels[index]
            waiting.rows += sign * rows
            waiting.nbytes += sign * nbytes
            waiting.large += large
        return sign * rows

    def level_of(self, priority: int, said_by: str) -> QueueLevel:
        """The level of a request with this priority; 0 = the default. Where there is one level, any priority is of it:
        clients send theirs to every model. said_by: what gave it. Raises: BadRequest."""
        count = len(self.levels)
        if not priority or count == 1:
            return self.default_level
        if priority > count:
            raise BadRequest(
                f"{said_by} is {priority} and model {self.model!r} has priority levels 1 to {count} "
                "(queue.priority_levels in its config.yaml); send one of them, or 0 or nothing for the model's default"
            )
        return self.levels[priority - 1]


def unloaded(queue: ModelQueue) -> NotReady:
    """The error for a request whose model version was unloaded while its body came."""
    return NotReady(
        f"model {queue.model!r} version {queue.version} was unloaded while this request came; GET /info lists what is "
        "served"
    )
