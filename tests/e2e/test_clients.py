"""Clients against a real server: the examples, docs/client.md, and the default clients of other languages."""

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import httpx
import numpy as np
import pytest
import requests
from onnx import TensorProto, helper
from PIL import Image

from foldserve import AsyncClient, Client
from tests.e2e.server_process import START_LIMIT_S, ServerProcess, serving
from tests.service.repositories import save_colours, save_onnx

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).parent / "programs"
WEIGHT = np.arange(50, dtype=np.float32).reshape(10, 5)
ROW = np.arange(10, dtype=np.float32).reshape(1, 10)
RAW = {"Content-Type": "application/octet-stream"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("repository")
    save_onnx(
        folder / "mlp" / "1" / "model.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 10])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 5])],
        {"w": WEIGHT},
    )
    (folder / "colours" / "1").mkdir(parents=True)
    save_colours(folder / "colours" / "1")
    output = tmp_path_factory.mktemp("server") / "output"
    with serving(folder, output, "--api-servers", "2", grpc=True) as running:
        running.wait_until("/v2/health/ready", 200)
        yield running


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a red picture as a JPEG and a PNG."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("photo.jpg", "photo.png"):
        Image.new("RGB", (300, 200), (220, 40, 90)).save(folder / name)
    return folder


def printed(*command: str | Path, cwd: Path = ROOT, environ: dict[str, str] | None = None) -> str:
    """What a program prints that succeeds."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environ,
        capture_output=True,
        text=True,
        timeout=START_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_example_is_in_the_page_and_run_by_a_test() -> None:
    files = {file.name for file in (ROOT / "examples").iterdir()} - {"README.md"}
    listed = re.findall(
        r"^\| \[([\w.]+)\]\(\1\)", (ROOT / "examples" / "README.md").read_text(), re.MULTILINE
    )
    assert set(listed) == files
    assert len(listed) == len(files)
    run = Path(__file__).read_text()
    assert [file for file in files if f'"{file}"' not in run and f'"examples/{file}"' not in run] == []


def check_example(text: str, *, times: int, pictured: bool = True) -> None:
    """It has the row's answer so many times, and the picture's label."""
    for number in (ROW @ WEIGHT)[0]:
        assert len(re.findall(rf"\b{number:g}(?:\.0)?\b", text)) == times, text
    assert (re.search(r"\bred\b", text) is not None) is pictured


@pytest.mark.parametrize(
    ("file", "times"), [("with_client.py", 1), ("with_async_client.py", 1), ("with_requests.py", 2)]
)
def test_example_in_python_prints_the_answers(
    server: ServerProcess, photos: Path, file: str, times: int
) -> None:
    given = (server.url, "colours", photos / "photo.jpg")
    check_example(printed(sys.executable, "-W", "error", f"examples/{file}", *map(str, given)), times=times)


def test_examples_of_nvidias_client_print_the_answer(server: ServerProcess) -> None:
    for file, address in (("with_tritonclient.py", server.url), ("with_tritonclient_grpc.py", server.grpc)):
        check_example(printed(sys.executable, f"examples/{file}", address), times=1, pictured=False)


def test_example_of_curl_prints_the_answers(server: ServerProcess, photos: Path) -> None:
    check_example(printed("sh", "examples/curl.sh", server.url, "colours", photos / "photo.jpg"), times=3)


def test_example_in_javascript_prints_the_answers(node: str, server: ServerProcess, photos: Path) -> None:
    check_example(printed(node, "examples/fetch.mjs", server.url, "colours", photos / "photo.jpg"), times=2)


def test_example_in_java_prints_the_answers(java: str, server: ServerProcess, photos: Path) -> None:
    given = (server.url, "colours", photos / "photo.jpg")
    check_example(printed(java, "examples/Ask.java", *given), times=2)


def test_example_in_go_prints_the_answers(
    go: str, server: ServerProcess, photos: Path, tmp_path: Path
) -> None:
    environ = {**os.environ, "GOCACHE": str(tmp_path), "GO111MODULE": "off", "CGO_ENABLED": "0"}
    given = (server.url, "colours", photos / "photo.jpg")
    check_example(printed(go, "run", "examples/ask.go", *given, environ=environ), times=2)


def test_kserves_client_is_served(with_kserve: dict[str, str], server: ServerProcess) -> None:
    given = (server.url, server.grpc)
    example = printed(sys.executable, "examples/with_kserve.py", *given, environ=with_kserve)
    check_example(example, times=3, pictured=False)
    told = json.loads(printed(sys.executable, PROGRAMS / "ask_kserve.py", *given, environ=with_kserve))
    rows = (np.arange(20, dtype=np.float32).reshape(2, 10) @ WEIGHT).tolist()
    yes = (
        "live",
        "ready",
        "model ready",
        "v1 live",
        "v1 ready",
        "grpc live",
        "grpc ready",
        "grpc model ready",
    )
    assert told == {
        **dict.fromkeys(yes, True),
        "nobody ready": False,
        "refusal": [404, "unknown_model"],
        "v1": rows,
        **{way: ["find me", rows] for way in ("binary True", "binary False", "grpc")},
    }


def test_javas_default_client_is_answered_over_http_1_also_when_it_waits_for_100(
    java: str, server: ServerProcess
) -> None:
    at_once, waited, wrong = printed(java, PROGRAMS / "Many.java", server.url).splitlines()
    assert (at_once, waited) == ("64", "64")
    assert json.loads(wrong)["code"] == "bad_json"


def test_nodes_clients_stream_and_keep_connections(node: str, server: ServerProcess) -> None:
    assert printed(node, PROGRAMS / "many.mjs", server.url).split() == ["64", "64"]


def test_curl_uploads_a_file_and_what_comes_out_of_a_pipe(server: ServerProcess, photos: Path) -> None:
    large = np.ones((40_000, 10), "<f4")  # more than 1 MB: curl asks with Expect: 100-continue
    (photos / "x.bin").write_bytes(large.tobytes())
    raw = ("-H", "Content-Type: application/octet-stream")
    there = f"{server.url}/predict/mlp"
    for how in (
        ("--data-binary", "@x.bin"),
        ("--data-binary", "@-", "-H", "Transfer-Encoding: chunked"),
        ("-T", "-", "-X", "POST"),
        ("-T", "x.bin", "-X", "POST", "--http1.0"),
        ("-T", "x.bin", "-X", "POST", "--http2"),
    ):
        with (photos / "x.bin").open("rb") as file:
            done = subprocess.run(
                ("curl", "-sSf", *raw, *how, there), cwd=photos, stdin=file, capture_output=True, check=False
            )
        assert done.returncode == 0, (how, done.stderr)
        np.testing.assert_array_equal(np.frombuffer(done.stdout, "<f4").reshape(-1, 5), large @ WEIGHT)
    for how in (("-T", "photo.png", "-X", "POST", "-H", "Content-Type: image/png"), ("-F", "any=@photo.jpg")):
        answer = json.loads(printed("curl", "-sSf", *how, f"{server.url}/predict/colours?top=1", cwd=photos))
        assert answer["top"][0]["label"] == "red"


def parts() -> Iterator[bytes]:
    """A body whose length nobody says."""
    yield ROW.tobytes()[:13]
    yield ROW.tobytes()[13:]


def test_pythons_clients_send_bodies_of_unknown_length_and_forms(server: ServerProcess, photos: Path) -> None:
    there, expected = f"{server.url}/predict/mlp", (ROW @ WEIGHT).tobytes()

    async def each(body: bytes) -> None:
        async def later() -> AsyncIterator[bytes]:
            for part in parts():
                yield part

        async with (
            aiohttp.ClientSession() as session,
            session.post(there, data=later(), headers=RAW) as answer,
        ):
            assert await answer.read() == body
        async with httpx.AsyncClient(verify=False) as client:
            assert (await client.post(there, content=later(), headers=RAW)).content == body

    asyncio.run(each(expected))
    with requests.Session() as session:
        for _ in range(3):
            assert session.post(there, data=parts(), headers=RAW, timeout=START_LIMIT_S).content == expected
        with (photos / "photo.jpg").open("rb") as file:
            url = f"{server.url}/predict/colours?top=1"
            answer = session.post(url, files={"file": file}, timeout=START_LIMIT_S)
        assert answer.json()["top"][0]["label"] == "red"


def test_the_clients_page_says_what_happens(server: ServerProcess, photos: Path) -> None:
    text = (ROOT / "docs" / "client.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    script = "\n".join(blocks).replace("http://localhost:8000", server.url)
    lines = printed(sys.executable, "-W", "error", "-c", script, cwd=photos).splitlines()
    assert lines[0] == "(1, 5) float32"
    assert lines[1].startswith("(2, 5) ")
    assert "['red', 'red']" in lines
    assert "100 (1, 5)" in lines
    assert any(line.startswith("400 bad_tensor ") for line in lines)


def test_pictures_in_every_form_are_answered_with_labels_and_numbers(
    server: ServerProcess, photos: Path
) -> None:
    jpeg, png = photos / "photo.jpg", photos / "photo.png"
    blue = Image.new("RGB", (9, 7), (1, 2, 200))
    with Client(server.url) as client, jpeg.open("rb") as file:
        colours = client["colours"]
        for one in (str(jpeg), png, png.read_bytes(), file):
            assert [label for label, _ in colours.classify(one)] == ["red", "blue", "green"]
        many = colours.classify([jpeg, blue, str(png)] * 20, top=1)
        assert [row[0].label for row in many] == ["red", "blue", "red"] * 20
        np.testing.assert_array_equal(colours(png), [[220, 40, 90]])
        assert colours(png).dtype == np.float32
        assert (
            client.classify("colours", np.zeros((2, 4, 6, 3), np.uint8) + np.uint8([1, 9, 5]), 1)
            == [[("green", 9.0)]] * 2
        )

    async def main() -> None:
        async with AsyncClient(server.url) as client:
            many = await client["colours"].classify([jpeg, blue], top=1)
            assert [row[0].label for row in many] == ["red", "blue"]
            np.testing.assert_array_equal(await client["colours"](png), [[220, 40, 90]])

    asyncio.run(main())


def test_calls_go_on_unseen_while_the_processes_that_they_talk_to_are_killed(server: ServerProcess) -> None:
    wrong: list[object] = []
    stop = threading.Event()
    with Client(server.url, timeout_s=START_LIMIT_S) as client:

        def ask(number: int) -> None:
            rows = np.full((1, 10), number, np.float32)
            while not stop.is_set():
                try:
                    if not np.array_equal(client["mlp"](rows), rows @ WEIGHT):
                        wrong.append(number)
                except Exception as error:
                    wrong.append(error)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        before = set(server.api_servers())
        for pid in before:
            os.kill(pid, 9)
        server.until(lambda: len(after := set(server.api_servers())) == 2 and not after & before)
        server.wait_until("/v2/health/ready", 200)
        np.testing.assert_array_equal(client["mlp"](ROW), ROW @ WEIGHT)
        stop.set()
        for thread in threads:
            thread.join(START_LIMIT_S)
    assert wrong == []
