"""docs/http.md and docs/protocols.md say what the server does: routes, codes and headers are these; examples run."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from foldserve.service import errors
from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.errors import ServiceError
from tests.service.support import NumpyModels, app_of, running, served

DOCS = Path(__file__).parents[3] / "docs"
TEXT = (DOCS / "http.md").read_text()
PROTOCOLS = re.sub(r"\n## gRPC\n.*?(?=\n## )", "", (DOCS / "protocols.md").read_text(), flags=re.DOTALL)
"""The section on gRPC is run by tests/e2e/test_tritonclient_grpc.py."""
SHARED_MEMORY = re.compile(r"\n## Shared memory of clients\n.*?(?=\n## )", re.DOTALL)
"""Run by tests/e2e/test_client_shared_memory.py."""
MLP = Signature((TensorSpec("x", "FP32", (-1, 10)),), (TensorSpec("y", "FP32", (-1, 5)),))


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_every_route_is_in_the_document():
    for route in app_of().routes():
        assert f"`{route.method} {route.path}`" in TEXT + PROTOCOLS


def test_every_error_is_in_the_document_with_its_status():
    listed = set(re.findall(r"^\| (\d{3}) \| `(\w+)` \|", TEXT, re.MULTILINE))
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ServiceError)
    ]
    assert listed == {(str(kind.status), kind.code) for kind in kinds if kind is not ServiceError}


@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples call curl")
@pytest.mark.parametrize(
    ("text", "calls", "printed"),
    [(TEXT, 7, "[[45. 45. 45. 45. 45.]]"), (PROTOCOLS, 2, "(2, 5) first")],
    ids=["http.md", "protocols.md"],
)
def test_every_example_runs(text, calls, printed, tmp_path):
    weight = np.ones((10, 5), "f4")
    behind = NumpyModels(
        {("mlp", "1"): lambda inputs: {"y": inputs["x"] @ weight}}, {"mlp": served("mlp", ("1", MLP))}
    )
    with running(app_of(behind, default_model=None)) as port:
        here = f"127.0.0.1:{port}"
        # curl's -f makes an error answer fail the command; python3 must be one that has numpy.
        script = "\n".join(blocks(text, "sh")).replace("localhost:8000", here)
        script = script.replace("X-Timeout-Ms: 2000", "X-Timeout-Ms: 60000")
        script = script.replace("curl ", "curl -sSf ").replace("python3 ", f"{sys.executable} ")
        python = "".join(blocks(SHARED_MEMORY.sub("", text), "python")).replace("localhost:8000", here)
        script = script.replace("pip install", ": the tests have")
        assert script.count("curl") >= calls
        said = []
        for command in (["bash", "-ec", script], [sys.executable, "-c", python]):
            done = subprocess.run(
                command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
            )
            assert done.returncode == 0, done.stderr
            said.append(done.stdout)
        assert printed in "".join(said)
