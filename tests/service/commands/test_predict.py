import contextlib
import io
import socket
import threading
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from foldserve.service.artifact.pictures import PictureInput
from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.cli import main
from foldserve.service.commands.predict import connect, predict_files
from foldserve.service.errors import ConfigError
from tests.service.client.scripted import answers, scripted
from tests.service.support import NumpyModels, app_of, models, running, served

ROWS = np.array([[1, 2, 3], [4, 5, 6]], "f4")


@pytest.fixture(scope="module")
def url():
    with running(app_of(max_body_bytes=10_000)) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", ROWS)
    return "x.npy"


def ask(url, model, *files, version=None, output=None, timeout_ms=10_000.0, top=None):
    out = io.StringIO()
    with connect(url, timeout_ms) as client:
        return predict_files(client, model, files, version, output, out, top), out.getvalue()


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
    assert "sum float32 [2, 2]" in shown
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


def test_the_key_of_a_file_is_presented(file, tmp_path):
    (tmp_path / "key.txt").write_text("a-key-that-is-long-enough\n")
    with scripted(answers()) as server:
        with connect(server.url, 10_000.0, key_file="key.txt") as client:
            client.info()
        assert b"Bearer a-key-that-is-long-enough\r\n" in server.requests[0]


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"key_file": "none.txt"}, "--key-file none.txt cannot be read"),
        ({"ca": "x.npy"}, "ca='x.npy' cannot be read"),
    ],
)
def test_a_key_or_a_certificate_that_is_none_is_refused(file, option, says):
    with pytest.raises(ConfigError, match=says):
        connect("https://localhost", 1000.0, **option)


def test_a_deadline_is_the_servers_to_tell(file, capsys):
    behind = models()
    behind.held = True
    with running(app_of(behind)) as port:
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
    with bound_to(tmp_path / "s.sock", app_of()):
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
        ("circle.png", b"\x89PNG\r\n\x1a\nrest", "is a PNG picture that cannot be used: "),
        ("photo.npy", b"\xff\xd8\xff\xe0rest", "is a JPEG picture that cannot be used: "),
        ("old.gif", b"GIF89a" + bytes(20), "is a GIF picture; expected a JPEG, a PNG, or a .npy file"),
        ("empty.npy", b"", "is empty; expected a file that numpy.save wrote, or a JPEG or PNG"),
        ("text.npy", b"hello", "is not a .npy file; expected a file that numpy.save wrote, or a JPEG or PNG"),
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


@pytest.fixture(scope="module")
def url_of_pictures():
    """A server whose model takes pictures of 4 x 6, and has labels for its three columns: red, green, blue."""
    signature = Signature(
        (TensorSpec("pictures", "UINT8", (-1, 4, 6, 3)),), (TensorSpec("y", "FP32", (-1, 3)),)
    )
    image = PictureInput("pictures", size=(4, 6)).to_manifest()
    model = served("colours", ("1", signature), ("2", signature))
    versions = {
        "1": replace(model.versions["1"], manifest={}),
        "2": replace(model.versions["2"], manifest={"image": image, "labels": ["red", "green", "blue"]}),
    }

    def means(inputs):
        return {"y": inputs["pictures"].mean(axis=(1, 2), dtype="f4")}

    running_engine = NumpyModels(
        {("colours", "1"): means, ("colours", "2"): means}, {"colours": replace(model, versions=versions)}
    )
    with running(app_of(running_engine)) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_picture_is_decoded_as_the_manifest_says_and_answered_with_labels(url_of_pictures, tmp_path, kind):
    path = tmp_path / "photo"
    Image.new("RGB", (90, 70), (200, 10, 100)).save(path, kind)
    code, shown = ask(url_of_pictures, "colours", str(path))
    assert code == 0
    assert "y float32 [1, 3]" in shown
    assert [line.split()[1] for line in shown.splitlines()[-3:]] == ["red", "blue", "green"]
    code, shown = ask(url_of_pictures, "colours", str(path), top=1)
    assert [line.split()[1] for line in shown.splitlines()[-1:]] == ["red"]


def test_labels_of_an_array_are_printed_when_asked_for(url_of_pictures, tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.stack([np.full((4, 6, 3), (1, 2, 3)), np.full((4, 6, 3), (3, 2, 1))]).astype(np.uint8))
    code, shown = ask(url_of_pictures, "colours", str(path), top=1)
    assert code == 0
    assert [line.split()[1] for line in shown.splitlines()[-2:]] == ["blue", "red"]
    assert "blue" not in ask(url_of_pictures, "colours", str(path))[1]


@pytest.mark.parametrize(("model", "version"), [("colours", "1"), ("nobody", None)])
def test_picture_for_a_model_that_says_nothing_of_pictures_is_refused_with_the_way(
    url_of_pictures, tmp_path, capsys, model, version
):
    path = tmp_path / "photo.png"
    Image.new("RGB", (9, 7)).save(path)
    assert ask(url_of_pictures, model, str(path), version=version)[0] == 1
    assert f"does not say how model '{model}' takes pictures; export the network with an ImageInput" in (
        capsys.readouterr().err
    )


def test_picture_for_a_server_that_is_none_is_told(tmp_path, capsys):
    Image.new("RGB", (9, 7)).save(tmp_path / "photo.png")
    assert ask("localhost:1", "m", str(tmp_path / "photo.png"))[0] == 1
    assert "cannot be reached" in capsys.readouterr().err


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
