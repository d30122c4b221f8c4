"""A connection reads no faster than its client takes answers, and parses no more than one request ahead."""

import pytest

from tests.service.frontend.http1.connection import (
    ASGI,
    JSON,
    LIVE,
    ApiServerHarness,
    call,
    rows,
    run,
    statuses,
)


def test_a_client_that_reads_nothing_is_not_read_from_until_it_does() -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        connection.send(call(rows(1.0)))
        await server.turn()
        connection.protocol.pause_writing()
        assert not connection.socket.reading
        connection.protocol.resume_writing()
        assert connection.socket.reading

    run(test)


@pytest.mark.parametrize("way", [(), (ASGI,)], ids=["short", "long"])
def test_no_more_is_read_while_requests_wait_for_their_turn(way: tuple[str, ...]) -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        connection.send(b"".join(call(rows(float(i)), JSON, *way) for i in range(20)))
        sent = 20
        most = 0
        while len(connection.answers()) < 100:
            await server.turn(most=2)
            most = max(most, len(connection.protocol.pipeline))
            if connection.socket.reading and sent < 100:
                connection.send(b"".join(call(rows(float(i)), JSON, *way) for i in range(sent, sent + 20)))
                sent += 20
        assert [answer.values for answer in connection.answers()] == [[i + 1.0] for i in range(100)]
        assert most <= 20
        assert server.free

    run(test)


@pytest.mark.parametrize("way", [(), (ASGI,)], ids=["short", "long"])
def test_of_a_long_pipeline_one_request_is_parsed_ahead_and_the_rest_is_bounded(way: tuple[str, ...]) -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        first = call(rows(1.0), JSON, *way)
        pipeline = LIVE * 2000
        connection.send(first + pipeline)
        await server.rest()
        assert len(connection.protocol.pipeline) <= 1
        assert len(server.state.tasks) <= 1
        assert server.bodies.budget.used_bytes >= len(pipeline) - 2 * len(LIVE)  # what is kept counts
        assert not connection.socket.reading
        await server.turn(lambda: connection.socket.written.count(b"HTTP/1.1 200 ") == 2001, most=100_000)
        assert statuses(connection) == [200] * 2001
        assert connection.socket.reading
        assert server.free
        # One that finds no room is ended.
        server.bodies.budget.limit_bytes = 1000
        connection.send(first + pipeline)
        assert connection.socket.aborted
        await server.rest()
        await server.turn(lambda: server.free)
        assert server.free

    run(test)
