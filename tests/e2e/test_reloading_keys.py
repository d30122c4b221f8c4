"""The keys file changes under load: no request fails, old keys go, new ones come, a broken file changes nothing."""

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from foldserve.service.access.key_file import digest_of
from tests.e2e.grpc_calls import connected, given, refused
from tests.e2e.server_process import ServerProcess, serving
from tests.service.repositories import save_linear

pytestmark = pytest.mark.e2e

ALWAYS, OLD, NEW = (f"the-{name}-key-0123456789" for name in ("lasting", "old", "new"))
ROW = np.ones((1, 10), np.float32)
BODY = json.dumps({"inputs": ROW.tolist()})


def written(*keys: str) -> str:
    return json.dumps(
        [
            {"name": f"k{at}", "sha256": digest_of(key.encode()).hex(), "scopes": ["infer", "metrics"]}
            for at, key in enumerate(keys)
        ]
    )


def replace(file: Path, text: str) -> None:
    """As programs that care replace a file: at once."""
    beside = file.with_suffix(".new")
    beside.write_text(text)
    os.replace(beside, file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("reloading")
    save_linear(made / "repository" / "mlp" / "1" / "model.onnx", np.ones((10, 5), np.float32))
    (made / "secrets").mkdir()
    (made / "secrets" / "keys.yaml").write_text(written(ALWAYS, OLD))
    return made


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[ServerProcess]:
    options = ("--api-servers", "2", "--keys", str(folder / "secrets" / "keys.yaml"))
    with serving(folder / "repository", folder / "output", *options, grpc=True) as running:
        running.headers = {"authorization": f"Bearer {ALWAYS}"}
        running.wait_until("/v2/health/ready", 200)
        yield running


@pytest.fixture
def keys_file(running: ServerProcess, folder: Path) -> Path:
    """With the keys that each test begins with, in force in both API servers."""
    file = folder / "secrets" / "keys.yaml"
    replace(file, written(ALWAYS, OLD))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client(verify=False)) for _ in range(8)]
        running.until(
            lambda: {status(running, key, one) for key in (ALWAYS, OLD) for one in clients} == {200}
        )
        running.until(lambda: {status(running, NEW, one) for one in clients} == {401})
    return file


@pytest.fixture
def server(running: ServerProcess, keys_file: Path) -> ServerProcess:
    return running


def said(server: ServerProcess) -> int:
    """How often the log has said that a change was not taken up."""
    return server.output.count("the keys that were read before stay in force")


def status(server: ServerProcess, key: str, client: httpx.Client | None = None) -> int:
    post = httpx.post if client is None else client.post
    headers = {"x-api-key": key, "content-type": "application/json"}
    return post(f"{server.url}/predict/mlp", content=BODY, headers=headers, timeout=60).status_code


class Load:
    """Clients who ask on and on, with a key that is always good."""

    def __init__(self, server: ServerProcess) -> None:
        self.answers: list[int] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(server,)) for _ in range(4)]
        for thread in self._threads:
            thread.start()

    def _ask(self, server: ServerProcess) -> None:
        with httpx.Client(verify=False) as client:
            while not self._stop.is_set():
                self.answers.append(status(server, ALWAYS, client))

    def end(self) -> list[int]:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        return self.answers


def test_keys_change_under_load_and_no_request_fails(server: ServerProcess, keys_file: Path) -> None:
    kept = [httpx.Client(verify=False) for _ in range(8)]  # on connections, and heads, of both API servers
    for client in kept * 4:
        assert status(server, OLD, client) == 200
        assert status(server, NEW, client) == 401
    load = Load(server)
    replace(keys_file, written(ALWAYS, NEW))
    server.until(lambda: all(status(server, OLD, client) == 401 for client in kept))
    assert {status(server, NEW, client) for client in kept} == {200}
    with connected(server) as caller:
        caller.infer("mlp", [given(ROW)], headers={"x-api-key": NEW})
        assert refused(lambda: caller.infer("mlp", [given(ROW)], headers={"x-api-key": OLD}))[0].endswith(
            "CATED"
        )
    for turn in range(20):
        replace(keys_file, written(ALWAYS, NEW, f"another-key-{turn:010}"))
    last = "another-key-0000000019"
    server.until(lambda: all(status(server, last, client) == 200 for client in kept))
    for client in kept:
        client.close()
    assert set(load.end()) == {200}
    assert "the keys have changed: 2 are in force" in server.output


@pytest.mark.parametrize("text", ["", "- {name: a", "- {name: a, key: short}", None])
def test_broken_file_leaves_the_keys_in_force_and_says_so(
    server: ServerProcess, keys_file: Path, text: str | None
) -> None:
    before = said(server)
    if text is None:
        keys_file.unlink()
    else:
        keys_file.write_text(text)
    server.until(lambda: said(server) > before)
    assert [status(server, key) for key in (ALWAYS, OLD, NEW)] == [200, 200, 401]
    keys_file.write_text(written(ALWAYS, NEW))
    server.until(lambda: [status(server, key) for key in (ALWAYS, OLD, NEW)] == [200, 401, 200])


def test_api_server_that_is_started_later_has_the_keys_in_force(
    server: ServerProcess, keys_file: Path
) -> None:
    replace(keys_file, written(ALWAYS, NEW))
    server.until(lambda: status(server, OLD) == 401)
    told = said(server)
    keys_file.write_text("broken: [")
    server.until(lambda: said(server) > told)
    before = server.api_servers()
    for pid in before:
        os.kill(pid, signal.SIGKILL)

    def others_serve() -> bool:
        try:
            return len(set(server.api_servers()) - set(before)) == 2 and status(server, ALWAYS) == 200
        except httpx.TransportError:
            return False

    server.until(others_serve)
    assert [status(server, key) for key in (NEW, OLD)] == [200, 401]


def test_link_of_a_mounted_secret_is_followed(folder: Path, tmp_path: Path) -> None:
    """As Kubernetes mounts a Secret: keys.yaml -> ..data/keys.yaml, and ..data -> a folder, a link that is replaced."""
    mount = tmp_path / "mount"
    for name, keys in (("..first", (ALWAYS, OLD)), ("..second", (ALWAYS, NEW))):
        (mount / name).mkdir(parents=True)
        (mount / name / "keys.yaml").write_text(written(*keys))
    (mount / "..data").symlink_to("..first")
    (mount / "keys.yaml").symlink_to("..data/keys.yaml")
    with serving(folder / "repository", tmp_path / "output", "--keys", str(mount / "keys.yaml")) as server:
        server.wait_until("/v2/health/ready", 200)
        assert [status(server, key) for key in (OLD, NEW)] == [200, 401]
        (mount / "..data_tmp").symlink_to("..second")
        os.replace(mount / "..data_tmp", mount / "..data")
        server.until(lambda: [status(server, key) for key in (OLD, NEW)] == [401, 200])
