"""A thread that gives a batch's outputs to its requests while the next batch runs.

After a run of some milliseconds the caches hold the network and nothing of ours: giving out the outputs of eight rows
takes then 100 to 200 µs instead of 30, in which the core that computes does nothing else. A backend lets go of the
interpreter while it computes, so that another core can do it meanwhile (benchmarks/README.md).
"""

import threading
from collections.abc import Callable
from queue import SimpleQueue

from foldserve.service.worker.batches.batch_runner import ComputedBatch


class OutputThread:
    """Of one instance, whose thread calls begin() and wait() in turn. give: gives out the outputs of a batch."""

    def __init__(self, give: Callable[[ComputedBatch], None]) -> None:
        self._give = give
        self._batches: SimpleQueue[ComputedBatch | None] = SimpleQueue()
        self._given: SimpleQueue[BaseException | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def begin(self, batch: ComputedBatch) -> None:
        """Have the outputs of a batch given out."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="outputs", daemon=True)
            self._thread.start()
        self._batches.put(batch)

    def wait(self) -> None:
        """Wait until they are. Raises: what giving them out raised."""
        error = self._given.get()
        if error is not None:
            raise error

    def end(self) -> None:
        """No batch comes any more."""
        if self._thread is not None:
            self._batches.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (batch := self._batches.get()) is not None:
            error = None
            try:
                self._give(batch)
            except BaseException as raised:
                error = raised
            self._given.put(error)
