"""How long a connection lives: idle, slow to read, at shutdown."""

from collections.abc import Callable
from typing import Any

import pytest

from foldserve.service.frontend.http1.flow import send_buffers as unread_module
from foldserve.service.frontend.http1.flow.send_buffers import PATIENCE_S
from tests.service.frontend.http1.connection import (
    ASGI,
    JSON,
    ApiServerHarness,
    Connection,
    call,
    rows,
    run,
    statuses,
)


class Clock:
    """The loop's time and timers, moved by hand."""

    def __init__(self, connection: Connection) -> None:
        self.now_s = 1000.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.protocol = connection.protocol
        real = connection.protocol.loop
        clock = self

        class Loop:
            def time(self) -> float:
                return clock.now_s

            def call_later(self, seconds: float, then: Callable[[], None]) -> Any:
                entry = (clock.now_s + seconds, then)
                clock.timers.append(entry)

                class Timer:
                    def cancel(self) -> None:
                        if entry in clock.timers:
                            clock.timers.remove(entry)

                return Timer()

            def create_task(self, *args: Any, **named: Any) -> Any:
                return real.create_task(*args, **named)

        connection.protocol._unset_keepalive_if_required()
        connection.protocol.timeout_keep_alive_task.cancel()
        connection.protocol.loop = Loop()  # type: ignore[assignment]
        connection.protocol._idle_since_s = self.now_s
        connection.protocol._arm_keep_alive(connection.protocol.timeout_keep_alive)

    def pass_time(self, seconds: float) -> None:
        """Move the clock, and call what is due."""
        end_s = self.now_s + seconds
        while due := [entry for entry in self.timers if entry[0] <= end_s]:
            entry = min(due, key=lambda timer: timer[0])
            self.timers.remove(entry)
            self.now_s = max(self.now_s, entry[0])
            entry[1]()
        self.now_s = end_s


def test_a_connection_is_ended_when_it_was_idle_for_the_whole_time_and_not_before() -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        clock = Clock(connection)
        limit_s = connection.protocol.timeout_keep_alive
        for _ in range(5):
            clock.pass_time(0.7 * limit_s)
            connection.send(call(rows(1.0)))
            await server.turn()
            assert len(clock.timers) == 1
        clock.pass_time(0.99 * limit_s)
        assert not connection.socket.closing
        clock.pass_time(0.02 * limit_s)
        assert connection.socket.closing

    run(test)


@pytest.mark.parametrize("sent", [b"", b"POST /predict/m0 HTTP/1.1\r\nX-Slow: "])
def test_a_client_that_never_sends_a_whole_head_is_ended(sent: bytes) -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        clock = Clock(connection)
        if sent:
            connection.send(sent)
        clock.pass_time(connection.protocol.timeout_keep_alive)
        assert connection.socket.closing

    run(test)


def test_a_connection_that_waits_for_an_answer_is_not_idle() -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        clock = Clock(connection)
        connection.send(call(rows(1.0)))
        clock.pass_time(10 * connection.protocol.timeout_keep_alive)
        assert not connection.socket.closing
        await server.turn()
        assert statuses(connection) == [200]
        clock.pass_time(connection.protocol.timeout_keep_alive)
        assert connection.socket.closing

    run(test)


def test_a_client_that_takes_its_answer_slowly_is_waited_for_and_one_that_takes_nothing_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unread_module, "CHECK_S", 0.0)

    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        clock = Clock(connection)
        connection.send(call(rows(1.0)))
        await server.turn()
        connection.socket.unsent_bytes = 40_000
        connection.protocol.pause_writing()
        for unsent in (30_000, 20_000, 10_000):
            assert server.http.unread.used_bytes == unsent + 10_000
            connection.socket.unsent_bytes = unsent
            server.now_s += 0.9 * PATIENCE_S
            await server.rest()
            clock.pass_time(2 * connection.protocol.timeout_keep_alive)
            assert not connection.socket.closing
        server.now_s += 1.1 * PATIENCE_S
        await server.rest()
        assert connection.socket.aborted
        assert server.free

    run(test)


def test_a_connection_that_is_closed_with_its_answer_waits_no_longer_for_who_takes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unread_module, "CHECK_S", 0.0)

    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        connection.socket.close = lambda: setattr(connection.socket, "closing", True)  # type: ignore[method-assign]
        connection.socket.unsent_bytes = 200
        connection.send(call(rows(1.0), JSON, "Connection: close"))
        await server.turn()
        assert connection.socket.closing
        server.now_s += 1.1 * PATIENCE_S
        await server.rest()
        assert connection.socket.aborted

    run(test)


def test_shutdown_waits_for_the_answer_and_ends_an_idle_connection_at_once() -> None:
    async def test(server: ApiServerHarness) -> None:
        idle, waiting = server.connect(), server.connect()
        waiting.send(call(rows(1.0)))
        for connection in (idle, waiting):
            connection.protocol.shutdown()
        assert idle.socket.closing
        assert not waiting.socket.closing
        await server.turn(lambda: waiting.socket.closing)
        (answer,) = waiting.answers()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        await server.rest()
        assert not server.state.connections

    run(test)


@pytest.mark.parametrize("way", [(), (ASGI,)], ids=["short", "long"])
@pytest.mark.parametrize("what", ["answer", "refusal", "late body", "404"])
def test_every_answer_of_a_server_that_ends_closes_its_connection(what: str, way: tuple[str, ...]) -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        connection.send(call(rows(1.0), JSON, *way))
        await server.turn()
        assert "connection" not in connection.answers()[0].headers
        message = {
            "answer": call(rows(1.0), JSON, *way),
            "refusal": call(b"[", JSON, *way),
            "late body": call(rows(1.0), JSON, *way),
            "404": call(rows(1.0), JSON, *way, path="/nowhere"),
        }[what]
        if what == "late body":
            connection.send(message[:-5])
            await server.rest()
        server.rig.board.draining[0] = 1
        connection.send(message[-5:] if what == "late body" else message)
        await server.turn(lambda: connection.socket.closing)
        answer = connection.answers()[1]
        assert answer.headers["connection"] == "close"
        assert connection.socket.closing

    run(test)


@pytest.mark.parametrize("way", [(), (ASGI,)], ids=["short", "long"])
def test_a_server_that_ends_answers_all_that_a_client_had_sent_and_closes_with_the_last(
    way: tuple[str, ...],
) -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        server.rig.board.draining[0] = 1
        connection.send(b"".join(call(rows(float(number)), JSON, *way) for number in range(5)))
        connection.protocol.shutdown()
        await server.turn(lambda: connection.socket.closing)
        assert [answer.values for answer in connection.answers()] == [[number + 1.0] for number in range(5)]
        closes = [answer.headers.get("connection") for answer in connection.answers()]
        assert closes == [None, None, None, None, "close"]

    run(test)
