"""Objects that own state show it in a debugger and in a failed assertion, on one line."""

import numpy as np
import pytest

from foldserve.service.engine.codec_process.client import CodecProcess
from foldserve.service.engine.codec_process.job import Job
from foldserve.service.engine.dispatcher import Dispatcher
from foldserve.service.engine.model_queue import ModelQueue
from foldserve.service.engine.request import PendingRequest
from foldserve.service.inference.body_budget import BodyBudget
from foldserve.service.inference.holdings import Holdings
from foldserve.service.inference.request import InferenceRequest
from foldserve.service.ipc.model_table import MappedModelTable
from foldserve.service.ipc.slots.slot_pool import SlotAllocation, SlotPool
from foldserve.service.server.supervisor import Supervisor
from foldserve.service.worker.model import LoadedModel
from foldserve.service.worker.ticket_consumer import TicketConsumer
from tests.service.engine.test_recovery import on_loop
from tests.service.engine_rig import Rig


@pytest.mark.parametrize(
    "owner",
    [
        *(Dispatcher, ModelQueue, PendingRequest, InferenceRequest, CodecProcess, Job),
        *(Holdings, MappedModelTable, SlotAllocation, SlotPool, Supervisor, TicketConsumer, LoadedModel),
    ],
)
def test_whatever_owns_state_has_a_repr_of_its_own(owner: type) -> None:
    assert owner.__repr__ is not object.__repr__


@on_loop
async def test_api_server_shows_its_requests_its_queues_and_its_memory() -> None:
    rig = Rig(workers=1, slots=4, data_bytes=1 << 16)
    request = rig.ask(1.0, 2.0)
    assert repr(request) == (
        f"<RecordedRequest {request.request_id} to m0/1: 2 rows, 0 crashes, "
        f"<SlotAllocation slot 0 QUEUED, attempt 1: 16 bytes at 256, {len(request.allocation.outputs)} at 320>>"
    )
    assert (
        repr(request.queue)
        == "<ModelQueue m0/1 in row 0.0: 1 requests, [<QueueLevel 0: 2 rows, 16 bytes, 0 large>]>"
    )
    shown = repr(rig.dispatcher)
    assert shown.startswith("<Dispatcher of API server 0, epoch 0: 1 requests in flight, 0 full pipes, ")
    assert repr(request.queue) in shown
    assert (
        f"<SlotPool: {rig.dispatcher._pool.allocated_bytes} of 65536 bytes allocated, 0 kept, 3 slots"
        in shown
    )
    rig.dispatcher.cancel(request)
    assert ", cancelled, " in repr(request)
    worker = rig.new_worker()
    rig.work(worker)
    assert rig.dispatcher.in_flight == {}, rig.dispatcher
    assert repr(request).endswith("without memory>")


@on_loop
async def test_worker_shows_what_it_holds_and_the_table_what_is_served() -> None:
    seen: list[str] = []

    def look(x: np.ndarray) -> None:
        seen.append(repr(worker.consumers[0]))

    rig = Rig(workers=1)
    worker = rig.new_worker(on_run=look)
    rig.ask(1.0)
    rig.work(worker)
    assert seen == ["<TicketConsumer of instance 0 of worker 0, row 0.0: 1 tickets>"]
    assert repr(rig.models) == "<MappedModelTable: 1 of 1 rows: m0/1 LOADING in row 0.0>"


def test_budget_shows_who_holds_how_much() -> None:
    budget = BodyBudget(100)
    assert budget.open(lambda: None).reserve(30)
    assert repr(budget) == "<BodyBudget: 30 of 100 bytes in 1 holdings>"
