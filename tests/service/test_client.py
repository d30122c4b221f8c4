import asyncio
import contextlib
import io
import socket
import threading

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


@pytest.mark.parametrize("address", ["", "ftp://x", "http://", "unix:", "http://x:port", "http://[::1"])
def test_an_address_that_is_none_is_refused(file, address):
    with pytest.raises(ConfigError, match="expected one as in http://localhost:8000"):
        ask(address, "double", file)


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"])
def test_no_proxy_is_asked(url, file, variable, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        monkeypatch.setenv(variable, f"http://127.0.0.1:{nobody.getsockname()[1]}")
        assert ask(url, "double", file)[0] == 0
        nobody.setblocking(False)
        with pytest.raises(BlockingIOError):
            nobody.accept()


def test_server_is_reached_through_a_socket_in_the_file_system(file, tmp_path):
    with bound_to(tmp_path / "s.sock", front()):
        assert ask(f"unix:{tmp_path}/s.sock", "double", file)[0] == 0
    assert ask(f"unix:{tmp_path}/s.sock", "double", file)[0] == 1


@contextlib.contextmanager
def bound_to(path, app):
    """Serve the application on a socket in the file system, through a server on the loopback."""
    with running(app) as port, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def pass_on():
            connection, _ = listener.accept()
            with connection, socket.create_connection(("127.0.0.1", port)) as behind:
                other = threading.Thread(target=copy, args=(behind, connection))
                other.start()
                copy(connection, behind)
                other.join()

        thread = threading.Thread(target=pass_on)
        thread.start()
        yield
        thread.join()
    path.unlink()


def copy(source, target):
    while data := source.recv(65536):
        target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("circle.png", b"\x89PNG\r\n\x1a\nrest", "is a PNG picture, no .npy file; decode it"),
        ("photo.npy", b"\xff\xd8\xff\xe0rest", "is a JPEG picture"),
        ("empty.npy", b"", "is no .npy file but empty"),
        ("text.npy", b"hello", "is no .npy file; save the array with numpy.save"),
        ("cut.npy", b"\x93NUMPY\x01\x00", "is a .npy file that cannot be used"),
        ("gone.npy", None, "does not exist; expected a file that numpy.save wrote"),
    ],
)
def test_file_that_is_no_array_is_told_for_what_it_is(file, tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        ask("localhost", "double", name)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{name} {says}")
    assert "pickle" not in problem
    assert "Errno" not in problem


def test_folder_is_no_file(file, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="folder cannot be read: Is a directory"):
        ask("localhost", "double", "folder")


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
