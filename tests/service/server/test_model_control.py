"""When a row of the model table moves on, by what processes say on the scoreboard."""

import numpy as np
import pytest

from foldserve.service.ipc.model_table import ModelKey, ModelState
from foldserve.service.ipc.records import TICKET
from foldserve.service.ipc.resources import Sizes, Transport
from foldserve.service.ipc.scoreboard import READY, RESTARTING, Dimensions
from foldserve.service.server.model_control import ModelControl
from tests.service.engine_rig import FIXED
from tests.service.repositories import metrics_of, model_version


class Rig:
    """Two workers, two API servers, and a table of one row with a model in it."""

    def __init__(self) -> None:
        self.transport = Transport(
            Dimensions(api_servers=2, workers=2, models=1, instances=2), Sizes(16, 4096)
        )
        self.board = self.transport.board.map()
        self.models = ModelControl(self.transport, self.board, metrics_of(("m", "1")))
        self.key: ModelKey = self.models.add(model_version("m", "1", FIXED))

    def check(self, workers: tuple[int, ...] = (0, 1), api_servers: tuple[int, ...] = (0, 1)) -> list[int]:
        return self.models.check(workers, api_servers)

    @property
    def state(self) -> ModelState:
        return ModelState(self.models.table.state[0])

    def let_go(self, is_worker: bool, *processes: int) -> None:
        for process in processes:
            self.board.let_go(is_worker, process, 0, self.key.generation)


@pytest.mark.parametrize(
    ("ready", "notes", "state", "error"),
    [
        ((0, 0), ("", ""), ModelState.LOADING, ""),
        ((0, 0), ("no memory", ""), ModelState.LOADING, "no memory"),
        ((0, 0), ("no memory", "no file"), ModelState.FAILED, "no memory"),
        ((0, READY), ("no memory", ""), ModelState.READY, ""),
        ((RESTARTING, 0), ("", ""), ModelState.READY, ""),  # requests wait for the next worker
    ],
)
def test_a_model_is_ready_when_one_worker_has_it_and_failed_when_none_could_load_it(
    ready: tuple[int, int], notes: tuple[str, str], state: ModelState, error: str
) -> None:
    rig = Rig()
    for worker in (0, 1):
        rig.board.ready[worker, 0] = ready[worker]
        rig.board.write_load_error(worker, 0, notes[worker])
    assert rig.check() == []
    assert (rig.state, rig.models.table.error(0)) == (state, error)


def test_a_model_of_more_levels_than_the_server_has_pipes_for_is_refused() -> None:
    rig = Rig()
    with pytest.raises(
        ValueError, match=r"model n has 3 priority levels, .* for models of 1 at most; set a smaller"
    ):
        rig.models.add(model_version("n", "1", FIXED, queue={"priority_levels": 3}))


def test_a_model_that_failed_is_ready_once_a_worker_that_is_started_again_has_loaded_it() -> None:
    rig = Rig()
    for worker in (0, 1):
        rig.board.write_load_error(worker, 0, "no memory")
    rig.check()
    assert rig.state is ModelState.FAILED
    rig.board.ready[1, 0] = READY
    rig.check()
    assert (rig.state, rig.models.table.error(0)) == (ModelState.READY, "")


def test_a_row_is_drained_by_api_servers_and_then_unloaded_by_workers_before_it_is_free() -> None:
    rig = Rig()
    rig.models.remove(rig.key)
    assert rig.check() == []
    rig.let_go(True, 0, 1)  # workers that never had it: it is not their turn yet
    rig.let_go(False, 0)
    assert (rig.check(), rig.state) == ([], ModelState.DRAINING)
    rig.let_go(False, 1)
    rig.board.let_go(True, 1, 0, 99)
    assert (rig.check(), rig.state) == ([0], ModelState.UNLOADING)
    assert (rig.check(), rig.state) == ([], ModelState.UNLOADING)
    rig.let_go(True, 1)
    assert (rig.check(), rig.state) == ([], ModelState.EMPTY)
    assert rig.models.table.generation[0] == 1


def test_processes_that_are_dead_hold_nothing_up() -> None:
    rig = Rig()
    rig.models.remove(rig.key)
    rig.let_go(False, 1)
    assert rig.check(api_servers=(1,)) == [0]
    assert (rig.check(workers=()), rig.state) == ([], ModelState.EMPTY)


def test_a_model_is_removed_once_and_one_that_is_gone_not_at_all() -> None:
    rig = Rig()
    rig.models.remove(rig.key)
    rig.check(api_servers=())
    rig.models.remove(rig.key)
    assert rig.state is ModelState.UNLOADING
    rig.check(workers=())
    rig.models.remove(rig.key)
    assert rig.state is ModelState.EMPTY


def test_nothing_of_the_last_model_is_left_for_the_next_in_its_row() -> None:
    rig = Rig()
    board, queue = rig.board, rig.transport.queues[0]
    board.ready[0, 0], board.batch_limit_rows[0, 0], board.taken_ns[1, 0] = READY, 4, 123
    board.write_load_error(1, 0, "no memory")
    board.write_notes(0, 0, ["TF32 is on"])
    board.write_run_time(0, 0, (5, 6), 7)
    queue.pass_turn(0, np.zeros(2, TICKET).tobytes())
    rig.models.remove(rig.key)
    rig.check(api_servers=())
    rig.check(workers=())
    key = rig.models.add(model_version("next", "1", FIXED))
    assert key == ModelKey(0, 1, "next", "1")
    assert (board.ready[0, 0], board.batch_limit_rows[0, 0], board.taken_ns[1, 0]) == (0, 0, 0)
    assert (board.load_error(1, 0), board.notes(0, 0), board.run_time(0, 0)) == ("", [], (0, 0))
    assert not board.has_let_go(True, 0, 0, key.generation)
    rig.check()
    assert rig.state is ModelState.LOADING
