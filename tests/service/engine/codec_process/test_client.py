"""The codec process as an API server sees it: a real process, over a real arena, asked by a real dispatcher."""

import asyncio
import contextlib
import gzip
import io
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.codecs import BodyType, json_codec
from foldserve.service.codecs.protocol import Options, Served
from foldserve.service.engine.codec_process import client, messages
from foldserve.service.engine.codec_process.client import CodecProcess
from foldserve.service.engine.codec_process.job import CodecsFailed, Job
from foldserve.service.engine.model_queue import ModelQueue
from foldserve.service.engine.request import PendingRequest
from foldserve.service.errors import (
    BadJson,
    BadTensor,
    DeadlinePassed,
    ModelFailed,
    NotReady,
    QueueFull,
    ServiceError,
    TooLarge,
)
from foldserve.service.logs.lines import LogStyle
from foldserve.service.protocols.predict import PREDICT
from tests.service.engine_rig import DYNAMIC, FIXED, MINUTE_NS, Rig

PAIR = Signature(
    (TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "INT64", (-1, -1))),
    (TensorSpec("y", "FP32", (-1, 2)), TensorSpec("n", "INT64", (-1,))),
)
FLAGS = Signature((TensorSpec("x", "BOOL", (-1, 3)),), (TensorSpec("y", "FP64", (-1,)),))
SIGNATURES = (FIXED, DYNAMIC, PAIR, FLAGS)
LIMIT_S = 60.0
WORK_LIMIT_S = 60.0
JSON_BYTES = 2**24


class Body(PendingRequest):
    """A request whose body lies in its place."""

    def __init__(self, queue: ModelQueue) -> None:
        super().__init__(queue)
        self.ends: list[Exception | None] = []
        self.done = asyncio.Event()

    @property
    def request_id(self) -> str:
        return "a body"

    def completed(self, error: ServiceError | None) -> None:
        raise AssertionError("never queued here")

    def then(self, error: Exception | None) -> None:
        self.ends.append(error)
        self.done.set()

    async def end(self) -> Exception | None:
        async with asyncio.timeout(LIMIT_S):
            await self.done.wait()
        (end,) = self.ends
        return end


class Codecs:
    """One API server's codecs."""

    def __init__(self, **rig: int) -> None:
        self.rig = Rig(*SIGNATURES, **{"data_bytes": 1 << 23, **rig})
        memory = self.rig.transport.arenas[0].memory
        self.codecs = CodecProcess(
            *(self.rig.dispatcher, self.rig.transport.models, list(PREDICT.values())),
            *(memory.handle.fd, memory.nbytes, LogStyle("info"), WORK_LIMIT_S),
        )

    def body(self, data: bytes, row: int = 0) -> Body:
        body = Body(self.rig.dispatcher.queues[row])
        self.rig.dispatcher.reserve(body, len(data), 0)[:] = data
        return body

    def ask(
        self,
        data: bytes,
        kind: BodyType = BodyType.JSON,
        row: int = 0,
        shape: str | None = None,
        seconds: float = 60.0,
    ) -> tuple[Body, Job]:
        body = self.body(data, row)
        deadline_ns = time.monotonic_ns() + int(seconds * 1e9)
        return body, self.codecs.parse(
            body, PREDICT[kind], messages.Body(len(data), options(shape)), deadline_ns, body.then
        )

    def inputs(self, body: Body) -> dict[str, np.ndarray]:
        """What lies in the body's place."""
        assert body.allocation is not None
        layout = body.queue.layout
        specs = layout.signature.inputs
        return {
            spec.name: np.frombuffer(body.allocation.inputs, spec.dtype, int(np.prod(shape)), offset).reshape(
                shape
            )
            for spec, (offset, shape) in zip(
                specs, layout.input_places(body.rows, tuple(body.dims)), strict=True
            )
        }

    async def until(self, condition) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                await asyncio.sleep(0.005)  # between two looks

    async def started(self) -> int:
        """The process, when it runs and has done its first work."""
        body, _ = self.ask(rows(1))
        assert await body.end() is None
        self.rig.dispatcher.release(body)
        assert self.codecs.pid is not None
        return self.codecs.pid


@contextlib.asynccontextmanager
async def open_codecs(**rig: int) -> AsyncIterator[Codecs]:
    """Everything that is lent has come back at the end, and the process is ended."""
    codecs = Codecs(**rig)
    try:
        yield codecs
        assert codecs.rig.all_free()
    finally:
        if codecs.codecs.pid is not None:
            os.kill(codecs.codecs.pid, signal.SIGKILL)
            await codecs.until(lambda: codecs.codecs.pid is None)


def run(test) -> None:
    asyncio.run(test())


def options(shape: str | None) -> Options:
    """What a head with this X-Tensor-Shape, if any, says."""
    return () if shape is None else (None, None, shape, None)


def rows(count: int) -> bytes:
    return json.dumps({"inputs": [[row, row + 0.5] for row in range(count)]}).encode()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


BODIES = [
    (rows(20_000), BodyType.JSON, 0, None),
    (npy(np.arange(60_000, dtype="f4").reshape(-1, 2)), BodyType.NPY, 0, None),
    (npy(np.asfortranarray(np.arange(60_000, dtype=">f4").reshape(-1, 2))), BodyType.NPY, 0, None),
    (np.arange(60_000, dtype="f4").tobytes(), BodyType.RAW, 1, "300,200"),
    (json.dumps({"inputs": [list(range(500))] * 40}).encode(), BodyType.JSON, 1, None),
    (
        json.dumps({"inputs": {"a": [[1, 2]] * 100, "b": [[2**62, -1, 0]] * 100}}).encode(),
        BodyType.JSON,
        2,
        None,
    ),
    (bytes([0, 1, 1] * 9_000), BodyType.RAW, 3, None),
    (b'{"inputs": [[true, false, true]]}', BodyType.JSON, 3, None),
]


@pytest.mark.parametrize(("data", "kind", "row", "shape"), BODIES)
def test_a_body_is_parsed_as_its_protocol_parses_it(data, kind, row, shape):
    async def test():
        async with open_codecs() as codecs:
            body, _ = codecs.ask(data, kind, row, shape)
            assert body.allocation is None  # it is the job's
            assert await body.end() is None
            expected = PREDICT[kind].parse(data, Served("m", "1", SIGNATURES[row]), options(shape)).inputs
            got = codecs.inputs(body)
            assert got.keys() == expected.keys()
            for name, array in expected.items():
                assert got[name].dtype == array.dtype
                np.testing.assert_array_equal(got[name], array)
            assert body.rows == len(array)
            room = body.queue.layout.output_capacity(body.rows)
            allocation: Any = body.allocation
            assert len(allocation.outputs) >= (room or len(allocation.inputs) * 4)
            codecs.rig.dispatcher.release(body)

    run(test)


@pytest.mark.parametrize(
    ("data", "kind", "row", "shape"),
    [
        (b"", BodyType.JSON, 0, None),
        (b'{"inputs": [[1, 2], [3]]}', BodyType.JSON, 0, None),
        (b'{"inputs": [[1, null]]}', BodyType.JSON, 0, None),
        (b'{"inputs": {"a": [[1, 2]], "b": [[1], [2]]}}', BodyType.JSON, 2, None),
        (b"\x93NUMPY junk", BodyType.NPY, 0, None),
        (bytes(8), BodyType.RAW, 1, None),
        (bytes(8), BodyType.RAW, 1, "1,3"),
        (bytes(8), BodyType.RAW, 2, None),
        (b"\x02\x00\x00", BodyType.RAW, 3, None),
        (b'{"inputs": "\xff"}', BodyType.JSON, 0, None),
    ],
)
def test_a_body_is_refused_as_its_protocol_refuses_it(data, kind, row, shape):
    with pytest.raises(ServiceError) as expected:
        SIGNATURES[row].check_inputs(
            PREDICT[kind].parse(data, Served("m", "1", SIGNATURES[row]), options(shape)).inputs
        )

    async def test():
        async with open_codecs() as codecs:
            body, _ = codecs.ask(data, kind, row, shape)
            error = await body.end()
            assert type(error) is expected.type
            assert str(error) == str(expected.value)
            assert body.allocation is None

    run(test)


def outputs_in(codecs: Codecs, row: int, rows: int, *arrays: np.ndarray) -> Body:
    """A request whose outputs stand in its place."""
    body = Body(codecs.rig.dispatcher.queues[row])
    layout = body.queue.layout
    codecs.rig.dispatcher.reserve(body, 8, layout.needed_bytes(arrays))
    layout.write_outputs(body.allocation.outputs, arrays)
    body.rows = rows
    return body


def test_outputs_become_the_json_that_the_codecs_write():
    async def test():
        async with open_codecs() as codecs:
            y, n = np.linspace(0, 1, 40_000, dtype="f4").reshape(-1, 2), np.arange(20_000)
            for names in (("y", "n"), ("n",)):
                body = outputs_in(codecs, 2, len(n), y, n)
                codecs.codecs.render(
                    body, PREDICT[BodyType.JSON], names, None, time.monotonic_ns() + MINUTE_NS, body.then
                )
                assert await body.end() is None
                wanted = {name: {"y": y, "n": n}[name] for name in names}
                assert bytes(body.allocation.inputs) == json_codec.encode("m2", "1", wanted)
                codecs.rig.dispatcher.release(body)

    run(test)


def test_outputs_that_json_cannot_carry_are_the_models_fault():
    async def test():
        async with open_codecs() as codecs:
            body = outputs_in(codecs, 1, 1, np.array([[1, np.nan]], "f4"))
            codecs.codecs.render(
                body, PREDICT[BodyType.JSON], ("y",), None, time.monotonic_ns() + MINUTE_NS, body.then
            )
            error = await body.end()
            assert isinstance(error, ModelFailed)
            assert "nan at [0, 1]" in str(error)

    run(test)


def test_no_process_is_started_before_there_is_work():
    async def test():
        async with open_codecs() as codecs:
            await asyncio.sleep(0)
            assert codecs.codecs.pid is None
            assert repr(codecs.codecs) == "<CodecProcess None: idle, 0 waiting>"

    run(test)


def test_a_process_that_dies_costs_no_body():
    async def test():
        async with open_codecs() as codecs:
            pid = await codecs.started()
            os.kill(pid, signal.SIGSTOP)  # so that it dies with the first of them in its hands
            asked = [codecs.ask(rows(count))[0] for count in (3, 4, 5)]
            await asyncio.sleep(0)
            os.kill(pid, signal.SIGKILL)
            for body, count in zip(asked, (3, 4, 5), strict=True):
                assert await body.end() is None
                assert codecs.inputs(body)["x"].tolist() == json.loads(rows(count))["inputs"]
                codecs.rig.dispatcher.release(body)
            assert codecs.codecs.pid != pid

    run(test)


def test_a_body_at_which_it_dies_twice_fails_alone():
    async def test():
        async with open_codecs() as codecs:
            pid = await codecs.started()
            os.kill(pid, signal.SIGSTOP)
            poison, _ = codecs.ask(rows(3))
            await asyncio.sleep(0)
            os.kill(pid, signal.SIGKILL)
            await codecs.until(lambda: codecs.codecs.pid not in (None, pid))
            other, _ = codecs.ask(rows(4))
            os.kill(codecs.codecs.pid, signal.SIGKILL)
            assert isinstance(await poison.end(), CodecsFailed)
            assert await other.end() is None
            codecs.rig.dispatcher.release(other)

    run(test)


def test_a_body_that_is_given_up_while_it_waits_holds_nothing():
    async def test():
        async with open_codecs() as codecs:
            pid = await codecs.started()
            os.kill(pid, signal.SIGSTOP)
            first, _ = codecs.ask(rows(3))
            second, job = codecs.ask(rows(4))
            await asyncio.sleep(0)
            lent = codecs.rig.dispatcher._pool.allocated_bytes
            job.cancel()
            assert codecs.rig.dispatcher._pool.allocated_bytes < lent
            os.kill(pid, signal.SIGCONT)
            assert await first.end() is None
            codecs.rig.dispatcher.release(first)
            assert second.ends == []

    run(test)


def test_a_body_that_is_given_up_while_it_is_worked_on_is_freed_when_the_process_lets_go():
    async def test():
        async with open_codecs() as codecs:
            pid = await codecs.started()
            os.kill(pid, signal.SIGSTOP)
            body, job = codecs.ask(rows(3))
            await asyncio.sleep(0)
            job.cancel()
            assert not codecs.rig.all_free()  # the process may read it still
            os.kill(pid, signal.SIGCONT)
            await codecs.until(codecs.rig.all_free)
            assert body.ends == []
            assert codecs.codecs.pid == pid

    run(test)


def test_a_body_whose_time_is_over_is_told_so_and_a_process_that_hangs_on_it_is_replaced(monkeypatch):
    monkeypatch.setattr(client, "MARGIN_S", 0.05)

    async def test():
        async with open_codecs() as codecs:
            pid = await codecs.started()
            os.kill(pid, signal.SIGSTOP)
            late, _ = codecs.ask(rows(3), seconds=0.05)
            waiting, _ = codecs.ask(rows(4), seconds=0.05)
            patient, _ = codecs.ask(rows(5))
            for body in (late, waiting):
                assert isinstance(await body.end(), DeadlinePassed)
            assert await patient.end() is None
            codecs.rig.dispatcher.release(patient)
            assert codecs.codecs.pid not in (None, pid)
            assert len(late.ends) == len(waiting.ends) == 1

    run(test)


def test_a_process_that_has_stalled_is_replaced_after_the_limit_though_the_request_has_all_the_time():
    async def test():
        async with open_codecs() as codecs:
            pid = await codecs.started()
            os.kill(pid, signal.SIGSTOP)
            codecs.codecs._work_limit_s = 0.1
            body, _ = codecs.ask(rows(4), seconds=1e6)
            behind, _ = codecs.ask(rows(5), seconds=1e6)
            await codecs.until(lambda: codecs.codecs._job is not None)
            codecs.codecs._work_limit_s = WORK_LIMIT_S  # of what is begun from here on
            assert await body.end() is None
            assert await behind.end() is None
            assert codecs.codecs.pid not in (None, pid)
            for done in (body, behind):
                codecs.rig.dispatcher.release(done)

    run(test)


# 6 characters become 8 bytes of two numbers, and 8 of an answer: 72,000, 96,000 and 96,000 bytes.
TEXT = b'{"inputs":[' + b"[0,0]," * 12_000 + b"[0,0]]}"


@pytest.mark.parametrize("data_bytes", [100_000, 230_000])
def test_inputs_that_would_find_no_room_if_they_were_alone_are_told_so(data_bytes):
    async def test():
        async with open_codecs(data_bytes=data_bytes) as codecs:
            body, _ = codecs.ask(TEXT)
            error = await body.end()
            assert isinstance(error, TooLarge)
            assert "rows or fewer" in str(error)
            again, _ = codecs.ask(rows(1))
            assert await again.end() is None
            codecs.rig.dispatcher.release(again)

    run(test)


def test_inputs_that_find_no_room_beside_others_are_to_come_again():
    async def test():
        async with open_codecs(data_bytes=400_000) as codecs:
            other = codecs.body(bytes(200_000))
            body, _ = codecs.ask(TEXT)
            assert isinstance(await body.end(), QueueFull)
            codecs.rig.dispatcher.release(other)
            again, _ = codecs.ask(TEXT)
            assert await again.end() is None
            codecs.rig.dispatcher.release(again)

    run(test)


def test_more_bodies_than_may_wait_are_refused_and_keep_their_place(monkeypatch):
    monkeypatch.setattr(client, "MOST_WAITING", 1)

    async def test():
        async with open_codecs() as codecs:
            first, _ = codecs.ask(rows(1))
            body = codecs.body(rows(1))
            with pytest.raises(QueueFull, match="wait to be decoded"):
                codecs.codecs.parse(
                    body, PREDICT[BodyType.JSON], messages.Body(5), time.monotonic_ns() + MINUTE_NS, body.then
                )
            for held in (first, body):
                if held is first:
                    assert await held.end() is None
                codecs.rig.dispatcher.release(held)

    run(test)


def test_bodies_that_were_given_up_keep_nobody_out(monkeypatch):
    monkeypatch.setattr(client, "MOST_WAITING", 2)

    async def test():
        async with open_codecs() as codecs:
            for _ in range(5):
                _, job = codecs.ask(rows(1))
                job.cancel()
            wanted = [codecs.ask(rows(1))[0] for _ in range(2)]
            late = codecs.body(rows(1))
            with pytest.raises(QueueFull, match="2 large bodies wait"):
                codecs.codecs.parse(
                    late, PREDICT[BodyType.JSON], messages.Body(5), time.monotonic_ns() + MINUTE_NS, late.then
                )
            for body in wanted:
                assert await body.end() is None
            for body in (late, *wanted):
                codecs.rig.dispatcher.release(body)

    run(test)


@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_a_small_body_does_not_wait_behind_large_ones(encoding):
    async def test():
        async with open_codecs() as codecs:
            ended: list[int] = []
            bodies = []
            data = {count: rows(count) for count in (100_000, 50_000, 5)}
            if encoding:
                data[5] = gzip.compress(data[5])
            for count in data:
                body = codecs.body(data[count])
                how = (encoding, JSON_BYTES) if encoding and count == 5 else ()

                def then(error, body=body, count=count):
                    ended.append(count)
                    body.then(error)

                codecs.codecs.parse(
                    body,
                    PREDICT[BodyType.JSON],
                    messages.Body(len(data[count]), (), *how),
                    time.monotonic_ns() + MINUTE_NS,
                    then,
                )
                bodies.append(body)
            for body in bodies:
                assert await body.end() is None
                codecs.rig.dispatcher.release(body)
            assert ended == [5, 50_000, 100_000]

    run(test)


def test_a_process_that_cannot_be_started_fails_its_bodies_and_is_tried_again(monkeypatch):
    async def test():
        async with open_codecs() as codecs:
            with monkeypatch.context() as patch:
                patch.setattr(sys, "executable", "/nowhere/python")
                body, _ = codecs.ask(rows(1))
                assert isinstance(await body.end(), NotReady)
            await codecs.started()

    run(test)


def test_a_fault_of_the_process_itself_is_told_as_such_and_it_goes_on():
    async def test():
        async with open_codecs() as codecs:
            pid = await codecs.started()
            body = outputs_in(codecs, 0, 1, np.zeros((1, 2), "f4"))
            codecs.codecs.render(
                body,
                PREDICT[BodyType.JSON],
                ("no such output",),
                None,
                time.monotonic_ns() + MINUTE_NS,
                body.then,
            )
            assert isinstance(await body.end(), CodecsFailed)
            assert await codecs.started() == pid

    run(test)


def test_refusals_survive_the_way_between_the_processes():
    for error in (BadJson("ü \x00 'x'"), BadTensor("y")):
        kind, values = messages.unpack(messages.refusal(error))
        assert kind == messages.MessageType.REFUSED
        again = messages.refused(*values)
        assert (type(again), str(again)) == (type(error), str(error))
