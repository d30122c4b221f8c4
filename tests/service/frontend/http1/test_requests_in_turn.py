"""What is no plain request on a connection, alone and beside others: offers of other protocols, half-closed clients,
odd targets. Each request that came whole gets its own answer, in order."""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from foldserve.service.frontend.http1 import lifetime as protocol_module
from foldserve.service.frontend.http1.flow.throttle import MOST_S
from tests.service.frontend.http1.connection import ASGI, JSON, PATH, ApiServerHarness, Connection, call, rows
from tests.service.repositories import sample

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n"
OFFERS = [
    ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAA"),
    ("Connection: Upgrade", "Upgrade: websocket"),
    ("Connection: keep-alive, upgrade", "Upgrade: TLS/1.0"),
    ("Upgrade: h2c", "Connection: upgrade"),
    ("Upgrade: anything, else",),
]


def run(test: Callable[[ApiServerHarness], Awaitable[Any]], **rig: Any) -> Any:
    async def main() -> Any:
        return await test(ApiServerHarness(**rig))

    return asyncio.run(main())


def chunked(body: bytes, *headers: str, path: str = PATH) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: test", f"Content-Type: {JSON}", "Transfer-Encoding: chunked"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def values(connection: Connection) -> list[list[float]]:
    return [answer.values for answer in connection.answers()]


# Offers of another protocol ----------------------------------------------------------------------------


@pytest.mark.parametrize("offer", OFFERS, ids=range(len(OFFERS)))
@pytest.mark.parametrize("way", [(), (ASGI,)], ids=["short", "long"])
@pytest.mark.parametrize("framing", [call, chunked], ids=["length", "chunked"])
@pytest.mark.parametrize("cut", [None, "head", "inside", "bytes"])
def test_an_offer_of_another_protocol_is_passed_over_and_the_body_is_read(
    offer: tuple[str, ...], way: tuple[str, ...], framing: Callable[..., bytes], cut: str | None
) -> None:
    kind = (JSON,) if framing is call else ()

    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        for number in (1.0, 2.0):
            message = framing(rows(number), *kind, *offer, *way)
            end = message.index(b"\r\n\r\n") + 4
            if cut == "bytes":
                for at in range(len(message)):
                    connection.send(message[at : at + 1])
            elif cut is None:
                connection.send(message)
            else:
                at = end if cut == "head" else end + 5
                connection.send(message[:at])
                await server.rest()
                connection.send(message[at:])
            await server.turn(lambda number=number: len(connection.answers()) == number)
        assert values(connection) == [[2.0], [3.0]]
        assert not connection.socket.closing
        assert server.free

    run(test)


def test_requests_with_offers_that_come_together_are_answered_in_order() -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        parts = [call(rows(float(i)), JSON, *OFFERS[i % len(OFFERS)]) for i in range(40)]
        parts[7:7] = [LIVE.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")]
        connection.send(b"".join(parts))
        await server.turn(lambda: len(connection.answers()) == 41, most=2000)
        answers = connection.answers()
        assert json.loads(answers.pop(7).body) == {"live": True}
        assert [answer.values for answer in answers] == [[i + 1.0] for i in range(40)]
        assert server.free

    run(test)


# Clients that end their side ---------------------------------------------------------------------------

WHOLE: dict[str, bytes] = {
    "short": call(rows(1.0)),
    "long": call(rows(1.0), JSON, ASGI),
    "chunked": chunked(rows(1.0)),
    "offer": call(rows(1.0), JSON, *OFFERS[0]),
    "live": LIVE,
    "not found": LIVE.replace(b"live", b"dead"),
    "bad": call(b"{"),
    "old": call(rows(1.0)).replace(b"HTTP/1.1", b"HTTP/1.0"),
}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_client_that_ends_its_side_gets_every_answer_and_then_the_end(
    name: str, times: int, at_once: bool
) -> None:
    async def test(server: ApiServerHarness) -> None:
        alone = server.connect()
        alone.send(WHOLE[name])
        await server.turn(lambda: bool(alone.answers()))
        connection = server.connect()
        connection.send(WHOLE[name] * times)
        if not at_once:
            await server.turn()
        connection.end()
        await server.turn(lambda: connection.socket.closing)
        assert connection.socket.closing
        once = name == "old"  # without keep-alive nothing is answered behind it
        expected = [alone.answers()[0].status] * (1 if once else times)
        assert [answer.status for answer in connection.answers()] == expected
        if at_once and name != "bad":  # which was answered before the end came
            assert connection.answers()[-1].headers["connection"] == "close"
        await server.rest()
        assert server.free
        assert connection.protocol not in server.state.connections

    run(test)


@pytest.mark.parametrize(
    "before", [b"", call(rows(1.0)), call(rows(1.0), JSON, ASGI)], ids=["", "short", "long"]
)
@pytest.mark.parametrize("half", [call(rows(2.0)), call(rows(2.0), JSON, ASGI), chunked(rows(2.0))])
@pytest.mark.parametrize("missing", [1, 10, -1], ids=["a byte", "ten bytes", "some of the head"])
def test_an_end_inside_a_request_gives_it_up_and_keeps_the_answers_before_it(
    before: bytes, half: bytes, missing: int
) -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        connection.send(before + (half[:-missing] if missing > 0 else half[:40]))
        connection.end()
        await server.turn(lambda: connection.socket.closing)
        assert connection.socket.closing
        assert values(connection) == ([[2.0]] if before else [])
        await server.rest()
        assert server.free
        gone = sample(
            server.metrics,
            "foldserve_requests_total",
            model="m0",
            version="1",
            protocol="json",
            code="499",
        )
        assert bool(gone) == (missing > 0)

    run(test)


@pytest.mark.parametrize("way", [(), (ASGI,)], ids=["short", "long"])
def test_a_client_that_seems_to_have_left_is_sent_what_every_answer_begins_with_once(
    way: tuple[str, ...],
) -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        connection.send(call(rows(1.0), JSON, *way))
        await server.rest()
        for _ in range(2):
            connection.end()  # told again when reading is resumed
        assert connection.socket.written == b"HTTP/1.1 "
        await server.turn(lambda: connection.socket.closing)
        assert values(connection) == [[2.0]]

    run(test)


@pytest.mark.parametrize("way", [(), (ASGI,)], ids=["short", "long"])
def test_a_client_that_has_left_is_given_up_before_any_batch(
    monkeypatch: pytest.MonkeyPatch, way: tuple[str, ...]
) -> None:
    monkeypatch.setattr(protocol_module, "was_reset", lambda transport: bool(transport.written))

    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        connection.send(call(rows(1.0), JSON, *way))
        await server.rest()
        connection.end()
        await server.rest()
        await server.turn()
        assert server.free
        assert connection.socket.aborted
        assert not server.worker.sessions[0].batches

    run(test)


def test_a_reset_while_several_requests_wait_gives_up_all_of_them() -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        connection.send(call(rows(1.0), JSON, ASGI) + LIVE + call(rows(2.0)))
        await server.rest()
        connection.leave()
        await server.rest()
        await server.turn()
        assert server.free
        assert not connection.socket.written
        assert not server.worker.sessions[0].batches

    run(test)


# What is refused ---------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[bytes, int]] = {
    "CONNECT": (b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "CONNECT with more": (
        b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n\x16\x03\x01GET / HTTP/1.1\r\n\r\n",
        400,
    ),
    "no path": (b"GET http://x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "no path but a query": (b"GET http://x?a=1 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "no host": (b"GET http:///health HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "half an address": (b"POST http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a port too high": (b"GET http://x:99999/health HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "an asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "no Host": (call(rows(1.0)).replace(b"Host: test\r\n", b""), 400),
    "two Hosts": (call(rows(1.0), JSON, "Host: other"), 400),
    "a coding": (chunked(rows(1.0)).replace(b": chunked", b": gzip, chunked"), 501),
    "HTTP/2.0": (call(rows(1.0)).replace(b"HTTP/1.1", b"HTTP/2.0"), 505),
    "RTSP": (call(rows(1.0)).replace(b"HTTP/1.1", b"RTSP/1.0"), 505),
    "TLS": (b"\x16\x03\x01\x00\xf1\x01\x00\x00\xed", 400),
    "PROXY": (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n", 400),
    "HTTP/2 at once": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize(
    "before", [b"", call(rows(1.0)), call(rows(1.0), JSON, ASGI)], ids=["", "short", "long"]
)
def test_what_is_refused_is_answered_in_its_turn_counted_and_logged(
    caplog: pytest.LogCaptureFixture, name: str, before: bytes
) -> None:
    message, status = REFUSED[name]

    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        connection.send(before + message)
        await server.turn(lambda: connection.socket.closing)
        answers = connection.answers()
        refused = answers.pop()
        assert connection.socket.closing
        assert [answer.values for answer in answers] == ([[2.0]] if before else [])
        assert refused.status == status
        assert json.loads(refused.body).keys() == {"error", "code"}
        assert refused.headers["connection"] == "close"
        assert (refused.headers["x-request-id"], status) == (
            server.lines[-1][0].request_id,
            server.lines[-1][1],
        )
        labels = {"model": "", "version": "", "protocol": "other", "code": str(status)}
        assert sample(server.metrics, "foldserve_requests_total", **labels) == 1
        assert server.free

    with caplog.at_level(logging.WARNING):
        run(test)
    assert "Traceback" not in caplog.text
    assert len(caplog.records) <= 1


@pytest.mark.parametrize("cut", [0, 1, 20, 40])
def test_another_protocol_that_looks_like_http_is_refused(cut: int) -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        message = call(rows(1.0)).replace(b"HTTP/1.1", b"RTSP/1.0")
        connection.send(message[:cut])
        connection.send(message[cut:])
        await server.turn(lambda: connection.socket.closing)
        assert [answer.status for answer in connection.answers()] == [505]
        assert "RTSP/1.0" in json.loads(connection.answers()[0].body)["error"]

    run(test)


def test_the_log_names_who_sent_no_http(caplog: pytest.LogCaptureFixture) -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        connection.protocol.client = ("203.0.113.7", 4711)
        connection.send(b"\x16\x03\x01\x00")
        await server.turn(lambda: connection.socket.closing)

    with caplog.at_level(logging.WARNING):
        run(test)
    (record,) = caplog.records
    assert "203.0.113.7:4711" in record.getMessage()
    assert r"\x16\x03" in record.getMessage()


# HTTP/1.0 and close ------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [(), (ASGI,)], ids=["short", "long"])
@pytest.mark.parametrize(
    ("version", "option", "said", "kept"),
    [
        ("1.1", None, None, True),
        ("1.1", "keep-alive", None, True),
        ("1.1", "close", "close", False),
        ("1.1", "Close, TE", "close", False),
        ("1.0", None, "close", False),
        ("1.0", "close", "close", False),
        ("1.0", "Keep-Alive", "keep-alive", True),
    ],
)
def test_a_connection_is_kept_as_version_and_client_ask_and_the_answer_says_so(
    way: tuple[str, ...], version: str, option: str | None, said: str | None, kept: bool
) -> None:
    options = (f"Connection: {option}",) if option else ()

    async def test(server: ApiServerHarness) -> None:
        for _ in range(2):
            connection = server.connect()
            connection.send(
                call(rows(1.0), JSON, *options, *way).replace(b"HTTP/1.1", b"HTTP/" + version.encode())
            )
            await server.turn(lambda connection=connection: bool(connection.answers()))
            (answer,) = connection.answers()
            assert (answer.values, answer.headers.get("connection")) == ([2.0], said)
            assert connection.socket.closing == (not kept)

    run(test)


@pytest.mark.parametrize("way", [(), (ASGI,)], ids=["short", "long"])
def test_a_refusal_before_the_body_waits_for_the_body_before_it_closes(way: tuple[str, ...]) -> None:
    message = call(rows(1.0), JSON, "Connection: close", *way)

    async def test(server: ApiServerHarness) -> None:
        server.rig.board.ready[0, 0] = 0
        connection = server.connect()
        connection.send(message[:-3])
        await server.rest()
        (answer,) = connection.answers()
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        assert not connection.socket.closing
        connection.send(message[-3:])
        await server.turn(lambda: connection.socket.closing)
        assert connection.socket.closing
        assert len(connection.answers()) == 1

    run(test)


# The same on both paths ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [(), (ASGI,)], ids=["short", "long"])
def test_the_models_time_counts_from_being_queued(way: tuple[str, ...]) -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        message = call(rows(1.0), JSON, *way)
        connection.send(message[:-3])
        done = asyncio.Event()
        asyncio.get_running_loop().call_later(0.6, done.set)  # the body takes longer than the model's time
        await done.wait()
        connection.send(message[-3:])
        await server.turn(lambda: bool(connection.answers()))
        assert values(connection) == [[2.0]]

    run(test, timeout_s=0.5)


@pytest.mark.parametrize("way", [(), (ASGI,)], ids=["short", "long"])
def test_refused_clients_are_paced(way: tuple[str, ...]) -> None:
    async def test(server: ApiServerHarness) -> None:
        first = server.connect()
        first.send(call(rows(1.0)))
        # A flood before this one, so that its pause is long: a machine that is busy elsewhere does not use it up.
        while 0.0 <= server.http.throttle.delay_s(time.monotonic()) < 0.9 * MOST_S:
            pass
        connection = server.connect()
        connection.send(call(rows(1.0), JSON, *way))
        await server.rest()
        assert connection.answers()[0].status == 429
        assert connection.protocol._flow.pauses

    run(test, max_rows=1)


@pytest.mark.parametrize("way", [(), (ASGI,)], ids=["short", "long"])
def test_the_log_has_the_id_of_a_request_in_flight(way: tuple[str, ...]) -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        connection.send(call(rows(1.0), JSON, "X-Request-Id: find-me-42", *way))
        await server.rest()
        (request,) = server.rig.dispatcher.in_flight.values()
        assert request.request_id == "find-me-42"
        await server.turn(lambda: bool(connection.answers()))

    run(test)
