"""docs/security.md: its commands and code run as they stand, one section after the other, in one folder."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from foldserve.service.access.scopes import NEEDED, OPEN
from tests.e2e.server_process import START_LIMIT_S, ServerProcess, serving
from tests.service.repositories import save_linear

pytestmark = pytest.mark.e2e

PAGE = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
SECTIONS = {part.partition("\n")[0]: part for part in re.split(r"^##+ ", PAGE, flags=re.MULTILINE)}
SERVE = "foldserve serve repository "


def blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", SECTIONS[section], re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("page")
    save_linear(made / "repository" / "mlp" / "1" / "model.onnx", np.ones((10, 5), np.float32))
    return made


def run(command: str, folder: Path, server: ServerProcess | None = None) -> str:
    """The output of a script of the page, with the server's own port."""
    if server is not None:
        command = command.replace("localhost:8000", f"localhost:{server.port}")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-euc", command],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=START_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def served(section: str, folder: Path) -> Iterator[ServerProcess]:
    """The server that the section's first script starts, after what stands before it was run."""
    script = blocks(section, "sh")[0]
    before, _, options = script.partition(SERVE)
    run(before, folder)
    given = [f"{folder / word}" if (folder / word).is_file() else word for word in shlex.split(options)]
    with serving(folder / "repository", folder / "output", *given) as running:
        running.until(lambda: "POST /predict/<model>" in running.output)
        yield running


@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples call curl")
def test_commands_of_the_page_do_what_they_say(folder: Path) -> None:
    for server in served("Keys", folder):
        predicted, described = run(blocks("Keys", "sh")[1], folder, server).split("}}")
        assert '"outputs":{"y":[[45.0,' in predicted
        assert '"platform":' in described
        (example,) = blocks("Keys", "python")
        assert run(f"python3 - <<'END'\n{example}END\n", folder, server) == "(1, 5)\n"
        key = (folder / "key.txt").read_text().strip()
        assert server.get("/metrics").status_code == 401
        assert key not in (folder / "output").read_text() + (folder / "keys.yaml").read_text()
    for section, printed in (
        ("TLS", '{"live":true,"ready":true}200\n'),
        ("Mutual TLS", '{"live":true,"ready":true}'),
    ):
        for server in served(section, folder):
            assert run(blocks(section, "sh")[1], folder, server) == printed


def test_page_has_every_field_of_a_key_and_every_open_call() -> None:
    for field in ("name", "sha256", "key", "scopes", "models", "rows_per_s", "queue_share"):
        assert f"| `{field}` |" in SECTIONS["Keys"]
    for call, scope in NEEDED.items():
        name = call.rpartition("/")[2] if call.startswith("/inference") else call
        if scope == OPEN and not call.startswith("/grpc"):
            assert f"`{name}`" in SECTIONS["Scopes"]
