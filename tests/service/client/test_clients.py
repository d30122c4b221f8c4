"""The Python client against a server on the loopback: arrays in, arrays out, and what is refused."""

import asyncio
import os
import socket
import threading

import numpy as np
import pytest

import foldserve
from foldserve import AsyncClient, Client, ClientError, ServerRefused, ServerUnreachable
from tests.service.support import app_of, models, running

ROWS = np.array([[1, 2, 3], [4, 5, 6]], "f4")


@pytest.fixture(scope="module")
def url():
    with running(app_of()) as port:
        yield f"http://127.0.0.1:{port}"


def test_array_is_answered_with_the_array_of_the_one_output(url):
    with Client(url) as client:
        answer = client["double"](ROWS)
        assert answer.dtype == np.float32
        np.testing.assert_array_equal(answer, 3 * ROWS)
        np.testing.assert_array_equal(client.predict("double", ROWS, version="1"), 2 * ROWS)


def test_several_inputs_go_by_name_and_several_outputs_come_so(url):
    with Client(url) as client:
        answer = client["pair"](a=np.float32([[1, 2]]), b=np.int64([10]))
        np.testing.assert_array_equal(answer["sum"], [[11, 12]])
        np.testing.assert_array_equal(answer["count"], [11])
        only = client.predict("pair", {"a": np.float32([[1, 2]]), "b": np.int64([10])}, output="count")
        np.testing.assert_array_equal(only, [11])


def test_coroutines_share_a_client(url):
    async def main():
        async with AsyncClient(url) as client:
            answers = await asyncio.gather(*(client["double"](ROWS * number) for number in range(20)))
            assert await client.ready()
            assert (await client.metadata("double"))["default_version"] == "2"
            return answers

    for number, answer in enumerate(asyncio.run(main())):
        np.testing.assert_array_equal(answer, 3 * number * ROWS)


def test_threads_share_a_client(url):
    with Client(url) as client:
        wrong = []

        def ask(number):
            for _ in range(10):
                if not np.array_equal(client["double"](ROWS * number), 3 * number * ROWS):
                    wrong.append(number)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
            assert not thread.is_alive()
    assert wrong == []


def test_refusal_has_status_code_and_the_servers_words(url):
    with Client(url) as client:
        with pytest.raises(ServerRefused, match="expected one of") as caught:
            client["nobody"](ROWS)
        assert (caught.value.status, caught.value.code) == (404, "unknown_model")
        assert caught.value.retry_after_s is None
        with pytest.raises(ServerRefused, match="bad_tensor"):
            client["double"](ROWS[:, :2])
        with pytest.raises(ClientError, match="is not served; expected one of double"):
            client.metadata("nobody")


def test_queue_that_is_full_is_asked_again_when_the_server_says():
    behind = models()
    behind.held, behind.queue = True, {"max_rows": 2}
    with running(app_of(behind)) as port, Client(f"http://127.0.0.1:{port}", timeout_s=30.0) as client:
        answers = []
        first = threading.Thread(target=lambda: answers.append(client["double"](ROWS)))
        first.start()
        assert behind.arrived.wait(10)
        with pytest.raises(ServerRefused, match="429 queue_full") as caught:
            client["double"](ROWS, timeout_s=0.5)  # no time for another try
        assert caught.value.retry_after_s >= 1.0
        release = threading.Timer(0.2, lambda: setattr(behind, "held", False))
        release.start()
        np.testing.assert_array_equal(client["double"](ROWS), 3 * ROWS)
        first.join(timeout=20)
        release.join()
    np.testing.assert_array_equal(answers[0], 3 * ROWS)


def test_server_that_is_not_there_is_told_and_not_ready():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}") as client:
        assert not client.ready()
        with pytest.raises(ServerUnreachable, match="is the server up"):
            client["double"](ROWS)


@pytest.mark.parametrize("url", ["", "ftp://x", "http://", "unix:", "http://x:port"])
def test_address_that_is_none_is_refused(url):
    with pytest.raises(ClientError, match="expected one as in http://localhost:8000"):
        Client(url)


def test_inputs_are_one_array_or_all_by_name(url):
    with Client(url) as client:
        for wrong in (lambda: client["pair"](), lambda: client["pair"](ROWS, b=ROWS)):
            with pytest.raises(TypeError, match="expected one array, or every input by its name"):
                wrong()


def test_package_names_what_it_has():
    for name in foldserve.__all__:
        assert getattr(foldserve, name).__name__ == name
    assert not hasattr(foldserve, "nothing")


def test_process_that_was_forked_asks_over_connections_of_its_own(url):
    with Client(url) as client:
        client["double"](ROWS)
        used = client._http
        pid = os.fork()
        if not pid:
            code = 1
            try:
                client["double"](ROWS)
                code = int(client._http is used)
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        client["double"](ROWS)
        assert client._http is used


def test_named_inputs_may_lie_in_memory_in_any_way(url):
    a = np.arange(4, dtype="f4").reshape(2, 2)
    b = np.int64([10, 20])
    with Client(url) as client:
        expected = client["pair"](a=a.T.copy(), b=b)["sum"]
        for way in (a.T, a.T.astype(">f4"), np.asfortranarray(a.T), np.stack([a.T, a.T], -1)[..., 0]):
            np.testing.assert_array_equal(client["pair"](a=way, b=b)["sum"], expected)


@pytest.mark.parametrize("timeout_s", [999.9999, 1000.0, 1234.5, 1e6])
def test_call_may_take_as_long_as_one_likes(url, timeout_s):
    with Client(url, timeout_s=timeout_s) as client:
        np.testing.assert_array_equal(client["double"](ROWS), 3 * ROWS)
