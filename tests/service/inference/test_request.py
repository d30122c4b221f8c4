"""One life of a request: each case ends alike whatever it came by (the fast path, ASGI), and in every protocol."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from foldserve.service.engine import recovery
from foldserve.service.errors import DeadlinePassed
from foldserve.service.ipc.model_table import ModelState
from foldserve.service.ipc.scoreboard import READY
from foldserve.service.metrics.catalog import REQUESTS
from tests.service.engine_rig import WorkerKilled
from tests.service.frontend.http1.connection import ASGI, Answer, ApiServerHarness, Connection
from tests.service.inference.carried import CARRIED, Carried

PATHS: dict[str, tuple[str, ...]] = {
    "fast": (),
    "asgi": (ASGI,),
    "chunked": ("Transfer-Encoding: chunked",),
}
"""How it comes: a chunked body has no length until it ends."""


@dataclass
class Case:
    """One request to the model y = x + 1, as a protocol and a path carry it.

    parts: how many its body is sent in. leaves: its client goes when this is reached.
    """

    carried: Carried
    headers: tuple[str, ...]
    rows: int = 1
    parts: int = 1
    extra: tuple[str, ...] = ()
    server: ApiServerHarness = field(init=False)
    connection: Connection = field(init=False)

    def begin(self, part: float = 1.0, value: float = 1.0) -> None:
        """Send the head and so much of the body."""
        x, carried = np.full((self.rows, 2), value, "f4"), self.carried
        body = carried.body(x)
        lines = [f"POST {carried.path} HTTP/1.1", "Host: test", "X-Request-Id: find-me"]
        lines += [*carried.headers(x), *self.headers, *self.extra]
        if "chunked" in "".join(self.headers):
            pieces = np.array_split(np.frombuffer(body, np.uint8), max(self.parts, 2))
            framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece.tobytes()) for piece in pieces)
            body = framed + b"0\r\n\r\n"
        else:
            lines.append(f"Content-Length: {len(body)}")
        self.sent = int(len(body) * part)
        self.left = body[self.sent :]
        head = "\r\n".join([*lines, "", ""]).encode()
        if self.parts == 1:
            self.connection.send(head + body[: self.sent])
            return
        self.connection.send(head)
        for piece in np.array_split(np.frombuffer(body[: self.sent], np.uint8), self.parts):
            self.connection.send(piece.tobytes())

    async def answer(self, written: Callable[[], bool] | None = None) -> Answer:
        """What comes back; it is whole when `written`, or shortly after its first byte."""
        async with asyncio.timeout(20):
            while not (written() if written else self.connection.socket.written):
                await self.server.turn(lambda: bool(self.connection.socket.written), most=5)
                await asyncio.sleep(0.0005)  # lets timers of the loop come due
        await self.server.turn(most=5)
        (answer,) = self.connection.answers()
        return answer


def all_ways(test: Any) -> Any:
    test = pytest.mark.parametrize("headers", PATHS.values(), ids=PATHS)(test)
    return pytest.mark.parametrize("carried", CARRIED.values(), ids=CARRIED)(test)


def run(
    case: Case, test: Callable[[Case], Awaitable[None]], statuses: tuple[int, ...], **server: Any
) -> None:
    """Run the test; then every request was counted and logged once, under its protocol, and everything is free."""

    async def main() -> None:
        case.server = ApiServerHarness(**server)
        case.connection = case.server.connect()
        await test(case)
        await case.server.rest()
        assert [status for _, status in case.server.lines] == list(statuses)
        protocol = case.carried.label
        counted = case.server.metrics.store.totals()
        cell = case.server.metrics.store.layout.cell
        for status in set(statuses):
            assert counted[cell(REQUESTS, 0, protocol, str(status))] == statuses.count(status)
        for context, _ in case.server.lines:
            assert (context.protocol, context.model, context.version) == (protocol, "m0", "1")
            assert (context.request_id, context.route) == ("find-me", case.carried.route)
        assert case.server.free
        if case.server.codecs.pid is not None:
            os.kill(case.server.codecs.pid, signal.SIGKILL)
            async with asyncio.timeout(20):
                while case.server.codecs.pid is not None:
                    await asyncio.sleep(0.005)  # until its end is read

    asyncio.run(main())


@all_ways
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("rows", [1, 7, 30_000])
def test_request_is_answered_with_its_own_numbers(
    carried: Carried, headers: tuple[str, ...], rows: int, parts: int
) -> None:
    case = Case(carried, headers, rows, parts)

    async def test(case: Case) -> None:
        case.begin()
        answer = await case.answer()
        assert answer.status == 200
        assert answer.headers["x-request-id"] == "find-me"
        np.testing.assert_array_equal(
            case.carried.values(answer.body, answer.headers), np.full((rows, 2), 2.0, "f4")
        )
        stages = [part.partition(";")[0] for part in answer.headers["server-timing"].split(", ")]
        assert stages == ["decode", "queue", "gather", "run", "scatter", "encode", "batch"]

    run(
        case,
        test,
        (200,),
        limit_bytes=1 << 22,
        data_bytes=1 << 24,
        max_rows=1 << 20,
        max_bytes=1 << 24,
        max_batch_size=1 << 15,
    )


@pytest.mark.parametrize("rows", [3, 30_000, 300_000], ids=["few", "some", "too many for the event loop"])
def test_rows_behind_json_that_came_before_are_read_where_they_arrived(rows: int) -> None:
    case = Case(CARRIED["oip binary"], (), rows, parts=3)

    async def test(case: Case) -> None:
        dispatcher = case.server.rig.dispatcher
        reserve, reserved = dispatcher.reserve, []
        dispatcher.reserve = lambda *given: reserved.append(given) or reserve(*given)  # type: ignore[method-assign]
        moved = []
        for value in (1.0, 2.0, 3.0, 4.0):
            reserved.clear()
            case.begin(value=value)
            answer = await case.answer(lambda: case.server.free)
            numbers = case.carried.values(answer.body, answer.headers)
            np.testing.assert_array_equal(numbers, np.full((rows, 2), value + 1, "f4"))
            moved.append(bool(reserved))
            case.connection.socket.written.clear()
        assert moved == [True, True, False, False]  # known when it came twice

    run(
        case,
        test,
        (200,) * 4,
        limit_bytes=1 << 22,
        data_bytes=1 << 24,
        max_rows=1 << 20,
        max_bytes=1 << 24,
        max_batch_size=1 << 15,
    )


@all_ways
def test_request_to_a_model_that_no_worker_serves_is_503(carried: Carried, headers: tuple[str, ...]) -> None:
    async def test(case: Case) -> None:
        board = case.server.rig.board
        board.ready[0, 0] = 0
        case.begin()
        answer = await case.answer()
        assert (answer.status, answer.code) == (503, "not_ready")
        assert "try again when" in json.loads(answer.body)["error"]
        board.ready[0, 0] = READY

    run(Case(carried, headers), test, (503,))


@all_ways
def test_request_past_the_queues_bound_is_429_with_the_time_to_wait(
    carried: Carried, headers: tuple[str, ...]
) -> None:
    async def test(case: Case) -> None:
        case.begin()
        await case.server.rest()
        other = case.server.connect()
        first, case.connection = case.connection, other
        case.begin()
        await case.server.rest()
        (refused,) = other.answers()
        assert (refused.status, refused.code) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        case.connection = first
        assert (await case.answer()).status == 200

    run(Case(carried, headers), test, (429, 200), max_rows=1)


@all_ways
@pytest.mark.parametrize("timeout", ["server", "header"])
def test_body_that_does_not_come_in_time_is_504(
    carried: Carried, headers: tuple[str, ...], timeout: str
) -> None:
    extra = ("X-Timeout-Ms: 20",) if timeout == "header" else ()

    async def test(case: Case) -> None:
        case.begin(0.5)
        answer = await case.answer()
        assert (answer.status, answer.code) == (504, DeadlinePassed.code)

    run(
        Case(carried, headers, extra=extra),
        test,
        (504,),
        request_timeout_s=0.02 if timeout == "server" else None,
    )


@all_ways
@pytest.mark.parametrize("expect", [(), ("Expect: 100-continue",)], ids=["", "expect"])
def test_head_without_a_body_is_504_in_time(
    carried: Carried, headers: tuple[str, ...], expect: tuple[str, ...]
) -> None:
    async def test(case: Case) -> None:
        case.begin(0.0)
        async with asyncio.timeout(20):
            while b" 504 " not in case.connection.socket.written:
                await asyncio.sleep(0.0005)  # lets timers of the loop come due

    run(Case(carried, headers, extra=expect), test, (504,), request_timeout_s=0.02)


@all_ways
def test_place_of_a_late_request_is_kept_until_the_worker_is_done_with_it(
    carried: Carried, headers: tuple[str, ...]
) -> None:
    async def test(case: Case) -> None:
        dispatcher = case.server.rig.dispatcher
        case.begin(0.0)  # the head alone, so that its time is bounded from then on
        await case.server.rest()
        case.connection.send(case.left)
        await case.server.rest()
        dispatcher.flush()
        (request,) = dispatcher.in_flight.values()
        slot = request.allocation.slot
        async with asyncio.timeout(20):
            while not case.connection.socket.written:
                await asyncio.sleep(0.0005)  # nobody turns the worker
        assert case.connection.answers()[0].status == 504
        assert dispatcher.in_flight[slot].allocation is not None
        assert dispatcher.in_flight[slot].cancelled
        await case.server.turn()

    run(Case(carried, headers), test, (504,), request_timeout_s=0.05)


@all_ways
def test_models_own_time_counts_from_being_queued_and_not_while_the_body_comes(
    carried: Carried, headers: tuple[str, ...]
) -> None:
    async def test(case: Case) -> None:
        case.begin(0.5)
        began_s = time.monotonic()
        await asyncio.sleep(0.12)  # longer than the model's time, which is what is tested
        assert time.monotonic() - began_s > 0.1
        case.connection.send(case.left)
        assert (await case.answer()).status == 200

    run(Case(carried, headers), test, (200,), timeout_s=0.1)


@all_ways
def test_request_that_no_worker_takes_in_the_models_time_is_504(
    carried: Carried, headers: tuple[str, ...]
) -> None:
    async def test(case: Case) -> None:
        case.begin()
        async with asyncio.timeout(20):
            while not case.connection.socket.written:
                await asyncio.sleep(0.0005)  # nobody turns the worker
        (answer,) = case.connection.answers()
        assert (answer.status, answer.code) == (504, DeadlinePassed.code)
        await case.server.turn()  # the worker drops its ticket, and its place is free

    run(Case(carried, headers), test, (504,), timeout_s=0.02)


@all_ways
@pytest.mark.parametrize("where", ["body", "queue"])
def test_client_that_leaves_is_counted_once_as_499(
    carried: Carried, headers: tuple[str, ...], where: str
) -> None:
    async def test(case: Case) -> None:
        case.begin(0.5 if where == "body" else 1.0)
        await case.server.rest()
        case.connection.leave()
        await case.server.turn()
        assert not case.connection.socket.written

    run(Case(carried, headers), test, (499,))


@all_ways
def test_request_that_kills_its_worker_twice_is_500_and_found_in_the_log_by_its_id(
    carried: Carried, headers: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    def die(x: np.ndarray) -> None:
        raise WorkerKilled

    async def test(case: Case) -> None:
        server = case.server
        case.begin()
        await server.rest()
        server.rig.dispatcher.flush()
        for _ in range(2):
            worker = server.rig.new_worker(on_run=die)
            with pytest.raises(WorkerKilled):
                worker.loops[0].step()
            server.rig.board.worker_died(worker.index)
            recovery.after_worker_death(server.rig.dispatcher, worker.incarnation)
            await server.rest()
            server.rig.dispatcher.flush()
        (answer,) = case.connection.answers()
        assert (answer.status, answer.code) == (500, "model_crashed")
        assert any("find-me" in record.getMessage() for record in caplog.records)

    run(Case(carried, headers), test, (500,))


@all_ways
def test_body_beyond_the_limit_is_413(carried: Carried, headers: tuple[str, ...]) -> None:
    async def test(case: Case) -> None:
        case.begin()
        await case.server.rest()
        (answer,) = case.connection.answers()
        assert (answer.status, answer.code) == (413, "too_large")
        assert answer.headers["connection"] == "close"

    case = Case(carried, headers, rows=1000)

    async def main() -> None:
        case.server = ApiServerHarness(limit_bytes=1000)
        case.connection = case.server.connect()
        await test(case)
        assert [status for _, status in case.server.lines] == [413]
        case.connection.leave()
        await case.server.rest()
        assert case.server.free

    asyncio.run(main())


@all_ways
def test_last_answer_of_a_server_that_ends_closes_its_connection(
    carried: Carried, headers: tuple[str, ...]
) -> None:
    async def test(case: Case) -> None:
        case.server.rig.board.draining[0] = 1
        case.begin()
        answer = await case.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert case.connection.socket.closing

    run(Case(carried, headers), test, (200,))


@all_ways
@pytest.mark.parametrize("full", [False, True])
def test_refusals_are_paced_when_nothing_else_is(
    carried: Carried, headers: tuple[str, ...], full: bool
) -> None:
    async def test(case: Case) -> None:
        first = case.connection
        case.begin()
        await case.server.rest()
        while full and 0.0 <= case.server.http.throttle.delay_s(time.monotonic()) < 0.9:
            pass
        case.connection = case.server.connect()
        case.begin()
        await case.server.rest()
        assert case.connection.answers()[0].status == 429
        assert bool(case.connection.protocol._flow.pauses) == full
        case.connection = first
        assert (await case.answer()).status == 200

    run(Case(carried, headers), test, (429, 200), max_rows=1)


def test_client_that_leaves_before_its_large_answer_begins_is_counted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As an answer is whose text is smaller than the outputs: it goes in one piece.
    monkeypatch.setattr("foldserve.service.frontend.asgi_exchange.SENT_BYTES", 1 << 20)

    async def test(case: Case) -> None:
        case.begin()
        case.connection.protocol.pause_writing()  # earlier answers are not taken
        async with asyncio.timeout(20):
            while not case.server.unread.sending:
                await case.server.turn(lambda: bool(case.server.unread.sending), most=5)
                await asyncio.sleep(0.001)
        case.connection.leave()
        await case.server.turn(most=20)

    run(
        Case(CARRIED["json"], (ASGI,), rows=40_000),
        test,
        (499,),
        limit_bytes=1 << 22,
        data_bytes=1 << 24,
        max_rows=1 << 20,
        max_bytes=1 << 24,
        max_batch_size=1 << 16,
    )


LARGE: dict[str, Any] = {
    "limit_bytes": 1 << 22,
    "data_bytes": 1 << 24,
    "max_rows": 1 << 20,
    "max_bytes": 1 << 24,
    "max_batch_size": 1 << 16,
}


def unload(server: ApiServerHarness) -> list[bool]:
    """Have the model unloaded, its row emptied as soon as it may be."""
    table, drained = server.rig.models, [False]

    def empty() -> None:
        drained[0] = True
        table.move(0, ModelState.UNLOADING)
        table.free(0)

    table.move(0, ModelState.DRAINING)
    server.rig.dispatcher.close_queue(server.rig.dispatcher.queues[0], empty)
    return drained


def test_model_that_is_unloaded_stays_until_its_last_large_answer_is_made() -> None:
    async def test(case: Case) -> None:
        case.begin()
        server, queue = case.server, case.server.rig.dispatcher.queues[0]
        async with asyncio.timeout(20):
            while not queue.rendering:
                await server.turn(lambda: queue.rendering > 0, most=5)
                await asyncio.sleep(0.0005)
        assert server.codecs.pid is not None
        os.kill(server.codecs.pid, signal.SIGKILL)  # the next one knows of no model yet
        drained = unload(server)
        assert not drained[0]
        assert (await case.answer()).status == 200
        assert drained[0]

    async def main() -> None:
        case = Case(CARRIED["json"], (), rows=40_000)
        case.server = ApiServerHarness(**LARGE)
        case.connection = case.server.connect()
        await test(case)
        assert case.server.free
        assert case.server.codecs.pid is not None
        os.kill(case.server.codecs.pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            while case.server.codecs.pid is not None:
                await asyncio.sleep(0.005)

    asyncio.run(main())


def test_answer_sent_after_its_model_is_gone_is_not_counted_for_the_next_in_its_row() -> None:
    async def main() -> None:
        case = Case(CARRIED["raw"], (), rows=300_000)
        case.server = server = ApiServerHarness(**{**LARGE, "max_batch_size": 1 << 19})
        case.connection = server.connect()
        case.begin()
        case.connection.protocol.pause_writing()
        async with asyncio.timeout(20):
            while not server.unread.sending:
                await server.turn(lambda: bool(server.unread.sending), most=5)
        server.metrics.rows.clear()
        assert unload(server)[0]
        case.connection.protocol.resume_writing()
        async with asyncio.timeout(20):
            while not server.lines:
                await asyncio.sleep(0.001)
        assert [answer.status for answer in case.connection.answers()] == [200]
        counted, cell = server.metrics.store.totals(), server.metrics.store.layout.cell
        assert counted[cell(REQUESTS, 0, "raw", "200")] == 0
        assert counted[cell(REQUESTS, server.metrics.spec.models, "raw", "200")] == 1
        assert [status for _, status in server.lines] == [200]
        assert server.free

    asyncio.run(main())
