"""Bodies and answers that would hold the event loop, on the fast path and on the ASGI path: alike, and nothing is kept.

The codec process is a real one; the worker is turned by hand.
"""

import asyncio
import contextlib
import io
import json
import os
import signal
from collections.abc import AsyncIterator

import numpy as np
import pytest

from foldserve.service.engine.codec_process import LARGE_COPY_BYTES, LARGE_JSON_BYTES, PIECE_BYTES, messages
from tests.service.frontend.http1.connection import (
    ASGI,
    JSON,
    RAW,
    Answer,
    ApiServerHarness,
    Connection,
    call,
)

NPY = "application/x-npy"
LIMIT_S = 60.0
WAYS = pytest.mark.parametrize("way", [(), (ASGI,)], ids=["short", "long"])
X = np.linspace(-1, 1, 80_000, dtype="f4").reshape(-1, 2)
LARGE = np.tile(X, (10, 1))


@contextlib.asynccontextmanager
async def open_house() -> AsyncIterator[ApiServerHarness]:
    server = ApiServerHarness(
        limit_bytes=1 << 25, data_bytes=1 << 26, max_rows=1 << 30, max_bytes=1 << 30, max_batch_size=1 << 20
    )
    try:
        yield server
        await until(server, lambda: server.free)
    finally:
        pid = server.codecs.pid
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            await until(server, lambda: server.codecs.pid is None)


async def until(server: ApiServerHarness, condition) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await server.turn(condition)
            await asyncio.sleep(0.002)  # the codec process takes its time


async def answer(server: ApiServerHarness, connection: Connection) -> Answer:
    def there() -> bool:
        written = connection.socket.written
        head, end, _ = bytes(written[:2000]).partition(b"\r\n\r\n")
        length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        return bool(end) and len(written) - len(head) - 4 >= int(length[0].split(b":")[1])

    await until(server, there)
    (found,) = connection.answers()
    connection.socket.written.clear()
    return found


def as_json(x: np.ndarray) -> bytes:
    return json.dumps({"inputs": x.tolist()}).encode()


def as_npy(x: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, x)
    return file.getvalue()


def numbers(kind: str, answer: Answer) -> np.ndarray:
    if kind == JSON:
        said = json.loads(answer.body)
        assert said.keys() == {"model", "version", "outputs"}
        return np.array(said["outputs"]["y"], "f4")
    if kind == NPY:
        return np.load(io.BytesIO(answer.body))
    return np.frombuffer(answer.body, "f4").reshape(-1, 2)


def send(connection: Connection, data: bytes) -> None:
    """In parts, as a socket gives it."""
    for at in range(0, len(data), 200_000):
        connection.send(data[at : at + 200_000])


CASES = [(JSON, as_json(X), X), (NPY, as_npy(LARGE), LARGE), (RAW, LARGE.tobytes(), LARGE)]


@WAYS
@pytest.mark.parametrize(("kind", "body", "x"), CASES, ids=["json", "npy", "raw"])
def test_a_large_body_is_answered_like_a_small_one_and_its_answer_leaves_in_pieces(kind, body, x, way):
    assert len(body) > (LARGE_JSON_BYTES if kind == JSON else LARGE_COPY_BYTES)

    async def test() -> None:
        async with open_house() as server:
            connection = server.connect()
            for _ in range(2):  # the connection is good for another
                send(connection, call(body, kind, *way))
                found = await answer(server, connection)
                assert found.status == 200
                assert found.headers["content-type"] == kind
                np.testing.assert_array_equal(numbers(kind, found), x + 1)
                for stage in ("decode", "queue", "run", "encode"):
                    assert f"{stage};dur=" in found.headers["server-timing"]
                if kind != JSON:
                    assert found.headers["x-tensor-shape"] == f"{len(x)},2"
            assert connection.socket.largest_write <= PIECE_BYTES + 2000
            assert (server.codecs.pid is not None) == (kind != RAW)

    asyncio.run(test())


@WAYS
def test_a_small_body_needs_no_process(way):
    async def test() -> None:
        async with open_house() as server:
            for kind, body in ((JSON, as_json(X[:500])), (NPY, as_npy(X)), (RAW, X.tobytes())):
                connection = server.connect()
                send(connection, call(body, kind, *way))
                assert (await answer(server, connection)).status == 200
            assert server.codecs.pid is None

    asyncio.run(test())


@pytest.mark.parametrize("accept", [JSON, RAW])
def test_a_large_answer_of_another_type_is_made_alike(accept):
    async def test() -> None:
        async with open_house() as server:
            connection = server.connect()
            send(connection, call(as_npy(LARGE), NPY, f"Accept: {accept}"))
            found = await answer(server, connection)
            np.testing.assert_array_equal(numbers(accept, found), LARGE + 1)
            assert connection.socket.largest_write <= PIECE_BYTES + 2000

    asyncio.run(test())


@WAYS
@pytest.mark.parametrize(
    ("kind", "body", "says"),
    [
        (JSON, as_json(X)[:-2] + b",[0,true]]}", "has true at [40000][1]"),
        (JSON, as_json(X)[:-1], "not JSON"),
        (JSON, b'{"inputs":' + b"[" * 200_000, "not JSON"),
        (NPY, as_npy(LARGE.astype("f8")), "has datatype float64"),
        (NPY, as_npy(LARGE)[:-1], "bytes follow"),
    ],
)
def test_a_large_body_that_is_wrong_is_told_what_is_wrong(kind, body, says, way):
    async def test() -> None:
        async with open_house() as server:
            connection = server.connect()
            send(connection, call(body, kind, *way))
            found = await answer(server, connection)
            assert found.status == 400
            assert says in json.loads(found.body)["error"]

    asyncio.run(test())


@WAYS
def test_a_large_answer_that_json_cannot_carry_is_the_models_fault(way):
    async def test() -> None:
        async with open_house() as server:
            server.worker.sessions[0].on_run = lambda x: np.where(x == x[-1], np.nan, x).astype("f4")
            connection = server.connect()
            send(connection, call(as_json(X), JSON, *way))
            found = await answer(server, connection)
            assert (found.status, found.code) == (500, "model_failed")
            assert "at [39999, 0]" in json.loads(found.body)["error"]

    asyncio.run(test())


async def stopped(server: ApiServerHarness) -> int:
    """Start the codec process and stop it."""
    connection = server.connect()
    send(connection, call(as_json(X)))
    assert (await answer(server, connection)).status == 200
    pid = server.codecs.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    return pid


@WAYS
def test_others_are_answered_while_a_large_body_is_decoded(way):
    async def test() -> None:
        async with open_house() as server:
            pid = await stopped(server)
            large, small = server.connect(), server.connect()
            send(large, call(as_json(X), JSON, *way))
            for _ in range(3):
                send(small, call(as_json(X[:2])))
                assert (await answer(server, small)).status == 200
            assert not large.socket.written
            os.kill(pid, signal.SIGCONT)
            assert (await answer(server, large)).status == 200

    asyncio.run(test())


@WAYS
def test_a_client_that_leaves_while_its_body_is_decoded_leaves_nothing(way):
    async def test() -> None:
        async with open_house() as server:
            pid = await stopped(server)
            connections = [server.connect() for _ in range(3)]  # one is worked on, two wait
            for connection in connections:
                send(connection, call(as_json(X), JSON, *way))
            await server.turn()
            for connection in connections:
                connection.leave()
            await server.turn()
            assert not server.free  # one is in the process's hands still
            os.kill(pid, signal.SIGCONT)
            await until(server, lambda: server.free)
            assert [status for _, status in server.lines] == [200, 499, 499, 499] or way

    asyncio.run(test())


@WAYS
@pytest.mark.parametrize("moment", ["encoded", "sent"])
def test_a_client_that_leaves_while_its_answer_is_made_or_sent_leaves_nothing(moment, way):
    async def test() -> None:
        async with open_house() as server:
            pid = await stopped(server)
            os.kill(pid, signal.SIGCONT)
            connection = server.connect()
            if moment == "encoded":
                # While the model runs, it is stopped again: the answer will be in its hands.
                server.worker.sessions[0].on_run = lambda x: os.kill(pid, signal.SIGSTOP)
                send(connection, call(as_json(X), JSON, *way))
                await until(server, lambda: bool(server.worker.sessions[0].batches[1:]))
                await until(server, lambda: server.codecs._job is not None)
                assert not connection.socket.written
                assert not server.free
                connection.leave()
                os.kill(pid, signal.SIGCONT)
            else:
                write = connection.socket.write

                def leave_at_once(data: bytes) -> None:
                    write(data)
                    if not connection.socket.closing:
                        connection.leave()

                connection.socket.write = leave_at_once  # type: ignore[method-assign]
                send(connection, call(LARGE.tobytes(), RAW, *way))
                await until(server, lambda: connection.socket.closing)
                assert len(connection.socket.written) < LARGE.nbytes
            await until(server, lambda: server.free)

    asyncio.run(test())


@WAYS
def test_the_time_of_a_request_bounds_its_decoding(way):
    async def test() -> None:
        async with open_house() as server:
            pid = await stopped(server)
            connection = server.connect()
            send(connection, call(as_json(X), JSON, "X-Timeout-Ms: 50", *way))
            found = await answer(server, connection)
            assert (found.status, found.code) == (504, "deadline_passed")
            os.kill(pid, signal.SIGCONT)

    asyncio.run(test())


@WAYS
def test_a_body_that_kills_the_process_twice_is_answered_500_with_an_id(way, caplog):
    async def test() -> None:
        async with open_house() as server:
            pid = await stopped(server)
            connection = server.connect()
            send(connection, call(as_json(X), JSON, "X-Request-Id: mine", *way))
            await until(server, lambda: server.codecs._job is not None)
            os.kill(pid, signal.SIGKILL)
            await until(server, lambda: server.codecs.pid not in (None, pid))
            os.kill(server.codecs.pid, signal.SIGKILL)
            found = await answer(server, connection)
            assert (found.status, found.code) == (500, "internal")
            assert "under id mine" in json.loads(found.body)["error"]
            assert "mine" in caplog.text

    asyncio.run(test())


def test_what_the_process_says_is_short_enough_for_a_packet():
    from foldserve.service.errors import BadTensor

    assert len(messages.refusal(BadTensor("x" * 8_000))) < messages.PACKET_BYTES
