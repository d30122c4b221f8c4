"""What a client does when connections end, servers say nothing, or say it later: both clients, the same."""

import asyncio
import io
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from foldserve import (
    AsyncClient,
    BadInput,
    Client,
    ClientError,
    DeadlinePassed,
    ServerRefused,
    ServerUnreachable,
)
from tests.service.client.scripted import Scripted, Waits, answers, closes, refuses, resets, scripted
from tests.service.support import app_of, running

Ask = Callable[..., Any]


def sync(
    call: str, url: str, *arguments: Any, times: int = 1, timeout_s: float = 20.0, **options: Any
) -> Any:
    with Client(url, timeout_s, **options) as client:
        return [getattr(client, call)(*arguments) for _ in range(times)][-1]


def coroutine(
    call: str, url: str, *arguments: Any, times: int = 1, timeout_s: float = 20.0, **options: Any
) -> Any:
    async def main() -> Any:
        async with AsyncClient(url, timeout_s, **options) as client:
            return [await getattr(client, call)(*arguments) for _ in range(times)][-1]

    return asyncio.run(main())


@pytest.fixture(params=[sync, coroutine])
def ask(request: pytest.FixtureRequest) -> Ask:
    return request.param


@pytest.mark.parametrize("end", [closes, resets])
def test_kept_connection_that_the_server_has_ended_is_made_anew_unseen(ask: Ask, end: Any) -> None:
    """The request has gone out when the end is seen: as when a server restarts, or its keep-alive time is over."""
    with scripted(answers(), end, answers()) as server:
        assert ask("info", server.url, times=2) == {"models": []}
        assert (server.connections, len(server.requests)) == (2, 3)


@pytest.mark.parametrize(("retries", "tries"), [(0, 1), (2, 3)])
def test_server_that_ends_every_connection_is_asked_as_often_as_was_said(
    ask: Ask, retries: int, tries: int
) -> None:
    with scripted(closes) as server:
        with pytest.raises(ServerUnreachable, match=r"cannot be reached: .*is the server up\?") as caught:
            ask("predict", server.url, "m", {"x": np.float32([1])}, retries=retries)
        assert len(server.requests) == tries
        assert (caught.value.status, caught.value.code) == (None, "unreachable")


@pytest.mark.parametrize(
    ("answered", "says"),
    [
        (b"\0\0\x18\4\0\0\0\0\0\0\4", "does not speak HTTP/1.1; is this the port for HTTP, and not .* gRPC"),
        (b"", r"is the server up\? One with TLS is asked at https://127\.0\.0\.1:\d+$"),
    ],
)
def test_port_for_something_else_is_told(ask: Ask, answered: bytes, says: str) -> None:
    def another(connection: socket.socket, _: bytes) -> None:
        connection.sendall(answered)

    with (
        scripted(closing(another)) as server,
        pytest.raises(ServerUnreachable, match=says),
    ):
        ask("info", server.url, retries=0)


def test_server_without_tls_is_told(ask: Ask) -> None:
    with running(app_of()) as port, pytest.raises(ServerUnreachable) as caught:
        ask("info", f"https://127.0.0.1:{port}", retries=0)
    assert f"does not speak TLS; is it http://127.0.0.1:{port}?" in str(caught.value)


def test_answer_that_is_cut_is_asked_for_again(ask: Ask) -> None:
    with scripted(closing(answers(b'{"models": [1]}', cut=3)), answers(b'{"models": [2]}')) as server:
        assert ask("info", server.url) == {"models": [2]}


def closing(handle: Any) -> Any:
    """What this handle does, and then the end of the connection."""

    def then_ends(connection: socket.socket, request: bytes) -> None:
        handle(connection, request)
        connection.shutdown(socket.SHUT_RDWR)

    return then_ends


def test_server_that_is_not_there_is_tried_for_a_moment_and_not_for_all_the_time(ask: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    began_s = time.monotonic()
    with pytest.raises(ServerUnreachable, match="is the server up"):
        ask("info", url, timeout_s=300.0)
    assert time.monotonic() - began_s < 60  # three pauses of 0.4 s in sum
    assert not ask("ready", url)


def test_silence_ends_with_the_time_of_the_call_which_the_server_was_told(ask: Ask) -> None:
    silent = Waits()
    with scripted(silent) as server:
        began_s = time.monotonic()
        with pytest.raises(
            DeadlinePassed, match=r"504 deadline_passed: no answer within timeout_s=0\.4"
        ) as caught:
            ask("info", server.url, timeout_s=0.4)
        assert 0.4 <= time.monotonic() - began_s < 20
        assert (caught.value.status, caught.value.code) == (504, "deadline_passed")
        (request,) = server.requests  # it is not sent again
        (line,) = [line for line in request.lower().split(b"\r\n") if line.startswith(b"x-timeout-ms")]
        assert 300 < float(line.split(b":")[1]) <= 360
        assert silent.gone.wait(20), "the server is not shown that nobody waits"


def test_refusal_for_now_is_asked_again_and_any_other_is_told(ask: Ask) -> None:
    busy = refuses("429 Too Many Requests", "queue_full", "Retry-After: 0")
    away = refuses("503 Service Unavailable", "not_ready", "Retry-After: 0")
    with scripted(busy, away, answers()) as server:
        assert ask("info", server.url) == {"models": []}
    for status in ("400 Bad Request", "401 Unauthorized", "413 Too Large", "500 Oh", "502 Bad Gateway"):
        with scripted(refuses(status, "some", "X-Request-Id: me"), answers()) as server:
            with pytest.raises(ServerRefused, match=f"{status[:3]} some: in a test") as caught:
                ask("info", server.url)
            assert (str(caught.value.status), caught.value.code) == (status[:3], "some")
            assert caught.value.request_id == "me"
            assert len(server.requests) == 1


def test_server_elsewhere_is_named_and_not_followed(ask: Ask) -> None:
    with (
        scripted(answers(b"", "307 Temporary Redirect", "Location: https://models.example/")) as server,
        pytest.raises(ServerRefused, match=r"307: https://models\.example/ is named instead"),
    ):
        ask("info", server.url)


def test_path_of_the_url_goes_before_every_call_and_names_are_escaped(ask: Ask) -> None:
    with scripted(answers(b'{"inputs": []}')) as server:
        ask("metadata", server.url + "/base/", "ä/b?c")
        assert server.requests[0].startswith(b"GET /base/v2/models/%C3%A4%2Fb%3Fc HTTP/1.1\r\n")


def test_key_goes_with_every_request_and_is_not_shown(ask: Ask) -> None:
    with scripted(answers()) as server:
        ask("info", server.url, key="secret-1")
        assert b"\r\nauthorization: bearer secret-1\r\n" in server.requests[0].lower()
        assert "secret" not in repr(Client(server.url, key="secret-1"))
    for key in ("", "a\r\nb", "ä", " a"):
        with pytest.raises(ClientError, match="expected printable ASCII"):
            Client("localhost", key=key)


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"])
def test_no_proxy_is_asked(ask: Ask, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted(closes) as proxy, scripted(answers()) as server:
        monkeypatch.setenv(variable, proxy.url)
        ask("info", server.url)
        assert proxy.requests == []


def test_request_id_is_sent_and_one_that_no_header_carries_is_refused(ask: Ask) -> None:
    def predict(request_id: str, server: Scripted) -> None:
        given = {"x": np.float32([1])}
        with Client(server.url) as client, pytest.raises(ClientError):
            client.predict("m", given, request_id=request_id)

    with scripted(refuses("400 Bad Request", "bad_tensor")) as server:
        predict("mine-1", server)
        assert b"\r\nx-request-id: mine-1\r\n" in server.requests[0].lower()
        for wrong in ("", "a\nb", "ä", "a" * 129):
            with Client(server.url) as client, pytest.raises(BadInput, match="printable ASCII"):
                client.predict("m", {"x": np.float32([1])}, request_id=wrong)
        assert len(server.requests) == 1


def test_closed_client_is_asked_nothing(ask: Ask) -> None:
    client = Client("localhost:1")
    client.close()
    with pytest.raises(ClientError, match="is closed; make another one"):
        client.info()

    async def main() -> None:
        client = AsyncClient("localhost:1")
        await client.close()
        with pytest.raises(ClientError, match="is closed; make another one"):
            await client.info()

    asyncio.run(main())


def test_cancelled_call_ends_its_connection_and_the_client_goes_on() -> None:
    async def main(url: str) -> None:
        async with AsyncClient(url) as client:
            task = asyncio.create_task(client.info())
            await asyncio.to_thread(silent.arrived.wait, 20)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(silent.gone.wait, 20)
            assert await client.info() == {"models": []}

    silent = Waits()
    with scripted(silent, answers()) as server:
        asyncio.run(main(server.url))


def test_large_bodies_are_whole(ask: Ask) -> None:
    body = np.random.default_rng(0).integers(0, 255, 5 * 2**20, np.uint8)
    with scripted(refuses("400 Bad Request", "bad_tensor")) as server:
        with pytest.raises(ServerRefused):
            ask("predict", server.url, "m", {"x": body})
        assert server.requests[0].endswith(body.tobytes())
        assert io.BytesIO(server.requests[0]).readline() == b"POST /v2/models/m/infer HTTP/1.1\r\n"


def test_threads_that_are_many_more_than_connections_are_kept_all_get_their_answers() -> None:
    with running(app_of()) as port, Client(f"http://127.0.0.1:{port}") as client:
        wrong = []

        def run(number: int) -> None:
            rows = np.full((1, 3), number, "f4")
            if not np.array_equal(client["double"](rows), 3 * rows):
                wrong.append(number)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
            assert not thread.is_alive()
        assert wrong == []
