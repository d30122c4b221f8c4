"""Which version has which row of the model table, and when a row moves on: the one writer of the table.

    add       EMPTY     -> LOADING      everything that a row has is made ready for another version
    check     LOADING   -> READY        a worker serves it
                        -> FAILED       no worker could load it; READY when one can after all
    remove    any       -> DRAINING     API servers take no more requests for it
    check     DRAINING  -> UNLOADING    every API server has answered what it had
              UNLOADING -> EMPTY        every worker has ended its instances

Decides and writes; the supervisor informs the processes. Processes that are being started again hold nothing.
"""

from collections.abc import Collection

from foldserve.service.ipc.model_table import SERVED, ModelKey, ModelState
from foldserve.service.ipc.resources import Transport
from foldserve.service.ipc.scoreboard import MappedScoreboard
from foldserve.service.metrics.recorder import Metrics
from foldserve.service.repository.model_version import ModelVersion


class ModelControl:
    """Of the supervising process."""

    def __init__(self, transport: Transport, board: MappedScoreboard, metrics: Metrics) -> None:
        self.table = transport.models.map()
        self._queues = transport.queues
        self._board = board
        self._metrics = metrics

    def add(self, version: ModelVersion) -> ModelKey:
        """Give a version a row. Raises: TableFull; ValueError when it has one already, or does not fit."""
        levels, most = version.config.queue.priority_levels, self._board.dimensions.levels
        if levels > most:
            raise ValueError(
                f"model {version.artifact.model} has {levels} priority levels, and this server was started for models "
                f"of {most} at most; set a smaller queue.priority_levels in its config.yaml, or start the server again"
            )
        key = version.add_to(self.table)
        self._board.clear_model(key.row)
        self._metrics.restart_model(key.row)
        self.renew_turn(key.row)
        return key

    def remove(self, key: ModelKey) -> None:
        """Have a version unloaded: nothing new is taken for it. Does nothing when it is not held any more."""
        if self.table.holds(key, SERVED):
            self.table.move(key.row, ModelState.DRAINING)

    def check(self, workers: Collection[int], api_servers: Collection[int]) -> list[int]:
        """Move each row on that is as far as that.

        Args:
            workers, api_servers: those that live.
        Returns: the rows of which all processes are to hear.
        """
        changed = []
        for key in self.table.find_all():
            row, state = key.row, ModelState(self.table.state[key.row])
            if state in SERVED:
                self._check_loading(row, state)
            elif state is ModelState.DRAINING and self._all_let_go(False, api_servers, key):
                self.table.move(row, ModelState.UNLOADING)
                self._queues[row].wake_reader(key.generation)
                changed.append(row)
            elif state is ModelState.UNLOADING and self._all_let_go(True, workers, key):
                self._queues[row].empty()
                self.table.free(row)
        return changed

    def _check_loading(self, row: int, state: ModelState) -> None:
        workers = range(self._board.dimensions.workers)
        problems = [self._board.load_error(worker, row) for worker in workers]
        if any(self._board.ready[worker, row] for worker in workers):
            now, error = ModelState.READY, ""
        elif all(problems):
            now, error = ModelState.FAILED, problems[0]
        else:
            now, error = ModelState.LOADING, next(filter(None, problems), "")
        if (now, error) != (state, self.table.error(row)):
            self.table.move(row, now, error)

    def _all_let_go(self, are_workers: bool, processes: Collection[int], key: ModelKey) -> bool:
        return all(self._board.has_let_go(are_workers, one, key.row, key.generation) for one in processes)

    def renew_turn(self, row: int) -> None:
        """Replace the turn to read a row's queue: whoever has it may be dead or stopped."""
        self._queues[row].renew_turn(self._board, row)

    def renew_turns(self) -> None:
        """Replace every turn."""
        for key in self.table.find_all():
            self.renew_turn(key.row)
