"""What the queues of an API server's models hold over all API servers, and how quickly they are served.

Read off the scoreboard; the basis of admission. Owned by the event loop thread of one API server.
"""

import time
from typing import Final

from foldserve.service.engine.admission import Load
from foldserve.service.engine.model_queue import ModelQueue
from foldserve.service.engine.queue_level import QueueLevel, View
from foldserve.service.ipc.run_time import RunTime, combined
from foldserve.service.ipc.scoreboard import READY, MappedScoreboard

_FORECAST_NS: Final = 1_000_000
"""How long a view's forecast is used before it is looked up again: it is made from the quickest batches of seconds."""


class QueueLoads:
    """As one API server sees them. index: its own, on the scoreboard."""

    def __init__(self, index: int, board: MappedScoreboard) -> None:
        self.index = index
        self.board = board
        self._api_servers = range(board.dimensions.api_servers)
        self._workers = range(board.dimensions.workers)

    def loaded(self, queue: ModelQueue) -> bool:
        """Whether some worker serves the queue's model at this moment."""
        ready, row = self.board.ready, queue.row
        return not queue.closed and any(ready[worker, row] == READY for worker in self._workers)

    def ready(self, queue: ModelQueue) -> bool:
        """Whether requests are taken: some worker serves the model, or died and is being started again."""
        if queue.closed:
            return False
        view = queue.default_level.view
        if view is not None:
            return view.ready
        ready, row = self.board.ready, queue.row
        return any(ready[worker, row] for worker in self._workers)

    def load(self, queue: ModelQueue, level: QueueLevel) -> Load:
        """What the queue holds before a request of this level, over all API servers, and how quickly it is served."""
        return self._load(queue, level, self._forecast(queue, time.monotonic_ns()))

    def _load(self, queue: ModelQueue, level: QueueLevel, run_time: RunTime) -> Load:
        board, row = self.board, queue.row
        rows, nbytes = level.rows, level.nbytes
        for api in self._api_servers:
            if api != self.index:
                rows += board.queued_rows[api, row, level.index]
                nbytes += board.queued_bytes[api, row, level.index]
        return Load(rows, nbytes, queue.max_batch_size, queue.instances, run_time, level.large > 0)

    def _forecast(self, queue: ModelQueue, now_ns: int) -> RunTime:
        """What a batch of the model takes."""
        board, row = self.board, queue.row
        of_workers = [
            (RunTime(*board.run_time(worker, row)), board.run_measured_ns[worker, row])
            for worker in self._workers
        ]
        queue.forecast, queue.forecast_ns = combined(of_workers, now_ns), now_ns
        return queue.forecast

    def new_view(self, queue: ModelQueue, level: QueueLevel) -> View:
        """What the scoreboard says of a queue at this moment, to a request of this level."""
        now_ns = time.monotonic_ns()
        forecast = queue.forecast
        if now_ns - queue.forecast_ns >= _FORECAST_NS:
            forecast = self._forecast(queue, now_ns)
        load = self._load(queue, level, forecast)
        return View(self.ready(queue), load, level.rows, level.nbytes, queue.bounds)
