import asyncio
import io
import socket

import numpy as np
import pytest

from service.cli import main
from service.client import predict_files
from service.errors import ConfigError
from tests.service.support import engine, front, running

ROWS = np.array([[1, 2, 3], [4, 5, 6]], "f4")


@pytest.fixture(scope="module")
def url():
    with running(front(max_body_bytes=10_000)) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", ROWS)
    return "x.npy"


def ask(url, model, *files, version=None, output=None, timeout_ms=10_000.0):
    out = io.StringIO()
    return predict_files(url, model, files, version, output, timeout_ms, out), out.getvalue()


def test_a_file_is_sent_and_the_answer_printed(url, file):
    code, shown = ask(url, "double", file)
    assert code == 0
    assert "x.npy: " in shown
    assert "server: decode;dur=" in shown
    assert "y float32 [2, 3]" in shown
    assert "[[ 3.  6.  9.]" in shown


def test_the_version_can_be_chosen(url, file):
    assert "[[ 2.  4.  6.]" in ask(url, "double", file, version="1")[1]


def test_every_file_is_a_request_of_its_own(url, file):
    code, shown = ask(url, "double", file, file)
    assert code == 0
    assert shown.count("y float32 [2, 3]") == 2


def test_named_files_are_the_inputs_of_one_request(url, file):
    np.save("a.npy", np.ones((2, 2), "f4"))
    np.save("b.npy", np.array([10, 20]))
    code, shown = ask(url, "pair", "a=a.npy", "b=b.npy")
    assert code == 0
    assert "sum float64 [2, 2]" in shown
    assert "count int64 [2]" in shown
    assert "[11 21]" in shown
    code, shown = ask(url, "pair", "a=a.npy", "b=b.npy", output="count")
    assert "sum" not in shown


def test_a_path_may_hold_an_equals_sign(url, file):
    np.save("a=b.npy", ROWS)
    assert ask(url, "double", "a=b.npy")[0] == 0


def test_the_command_line_comes_here(url, file, capsys):
    assert main(["predict", url.removeprefix("http://"), "double", file, "--version", "1"]) == 0
    assert "y float32 [2, 3]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "array", "says"),
    [
        ("nobody", ROWS, "404 unknown_model: model 'nobody'"),
        ("double", ROWS.astype("f8"), "400 bad_tensor"),
        ("double", np.zeros((1000, 3), "f4"), "413 too_large"),
    ],
)
def test_a_refusal_is_printed_and_the_exit_code_is_1(url, file, capsys, model, array, says):
    np.save("x.npy", array)
    assert ask(url, model, file)[0] == 1
    assert says in capsys.readouterr().err


def test_a_deadline_is_the_servers_to_tell(file, capsys):
    behind = engine()
    behind.delay = lambda: asyncio.Event().wait()
    with running(front(behind)) as port:
        assert ask(f"http://127.0.0.1:{port}", "double", file, timeout_ms=30.0)[0] == 1
    assert "504 deadline_passed" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_told(file, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert ask(f"http://127.0.0.1:{port}", "double", file)[0] == 1
    assert "is the server up?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "says"), [(200, "is the URL right?"), (500, "500: hello; is this a foldserve server?")]
)
def test_a_server_that_is_another_is_told(status, says, file, capsys):
    async def other(scope, receive, send):
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": message["type"] + ".complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        await receive()
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"hello"})

    with running(other) as port:
        assert ask(f"http://127.0.0.1:{port}", "double", file)[0] == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("address", ["", "ftp://x", "http://"])
def test_an_address_that_is_none_is_refused(file, address):
    with pytest.raises(ConfigError, match="expected one as in http://localhost:8000"):
        ask(address, "double", file)


def test_every_file_that_cannot_be_read_is_told(file, tmp_path):
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "empty.npy").write_bytes(b"")
    np.savez("many.npz", a=ROWS)
    np.save("objects.npy", np.array([object], dtype=object), allow_pickle=True)
    names = ("text.npy", "empty.npy", "many.npz", "objects.npy", "gone.npy")
    with pytest.raises(ConfigError) as caught:
        ask("localhost", "double", *names, file)
    assert [problem.split(" ")[0] for problem in caught.value.problems] == list(names)


@pytest.mark.parametrize(
    ("files", "says"),
    [(("a=x.npy", "x.npy"), "for all or for none"), (("a=x.npy", "a=x.npy"), "given twice")],
)
def test_files_named_in_part_or_twice_are_refused(file, files, says):
    with pytest.raises(ConfigError, match=says):
        ask("localhost", "double", *files)
