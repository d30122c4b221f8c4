"""/openapi.json of a real server: valid, of the models that are loaded, and what the server does: schemathesis sends
what the document allows and what it forbids, and compares every answer with it.

`make test ARGS='tests/e2e/test_openapi.py --openapi-examples 500'` is the long form.
"""

import os
import re
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from openapi_spec_validator import validate
from torch import nn

from foldserve.models.export import export_model
from foldserve.models.image_input import ImageInput
from tests.e2e.server_process import ServerProcess, serving
from tests.service.repositories import WEIGHT, save_onnx

pytestmark = pytest.mark.e2e

CHECKS = (
    "status_code_conformance,content_type_conformance,response_schema_conformance,response_headers_conformance,"
    "not_a_server_error,negative_data_rejection,unsupported_method,what_the_document_allows_is_answered"
)
EXACT = "/predict /predict/clipped /predict/clipped/versions/1 /v1/models/clipped:predict /invocations"
ROOT = Path(__file__).parents[2]
FLOAT, WHOLE, FLAG = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def save_models(repository: Path) -> None:
    """`clipped` in two versions, `several` inputs and outputs with names that are no words, `lengths` of any size,
    `photos` with labels. None gives an infinity, whatever it is sent: that is answered 500, as it should be."""
    tensor = helper.make_tensor_value_info
    bounds = {"low": np.float32(-9), "high": np.float32(9)}
    for version in ("1", "2"):
        save_onnx(
            repository / "clipped" / version / "model.onnx",
            [
                helper.make_node("Clip", ["x", "low", "high"], ["c"]),
                helper.make_node("MatMul", ["c", "w"], ["y"]),
            ],
            [tensor("x", FLOAT, ["rows", 4])],
            [tensor("y", FLOAT, ["rows", 3])],
            {"w": WEIGHT, **bounds},
        )
    (repository / "clipped" / "config.yaml").write_text("version_policy: all\n")
    odd, sum_ = "</td><script>", 'sum "<b>'
    save_onnx(
        repository / "several" / "1" / "model.onnx",
        [
            helper.make_node("Clip", [odd, "low", "high"], ["c"]),
            helper.make_node("Add", ["c", "c"], [sum_]),
            helper.make_node("Sign", ["n"], ["sign"]),
        ],
        [tensor(odd, FLOAT, ["rows", 2]), tensor("n", WHOLE, ["rows"])],
        [tensor(sum_, FLOAT, ["rows", 2]), tensor("sign", WHOLE, ["rows"])],
        bounds,
    )
    save_onnx(
        repository / "lengths" / "1" / "model.onnx",
        [helper.make_node("Not", ["flags"], ["nots"])],
        [tensor("flags", FLAG, ["rows", "length"])],
        [tensor("nots", FLAG, ["rows", "length"])],
        {},
    )
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    module = ImageInput(network, [120.0] * 3, [60.0] * 3, size=2, layout="CHW")
    with torch.random.fork_rng():
        export_model(
            module, module.example_inputs(), repository, name="photos", labels=("red", "green", "blue")
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("openapi")
    save_models(folder / "repository")
    options = ("--default-model", "clipped", "--api-servers", "1")
    with serving(folder / "repository", folder / "output", *options) as running:
        running.wait_until("/v2/health/ready", 200)
        yield running


@pytest.fixture(scope="module")
def document(server: ServerProcess) -> Any:
    return server.get("/openapi.json").json()


def test_the_document_is_valid(document: Any) -> None:
    validate(document)


def test_each_model_has_its_own_calls_with_its_names_and_sizes(document: Any) -> None:
    paths = document["paths"]
    of_several = {
        path for path, methods in paths.items() if methods.get("post", {}).get("tags") == ["several"]
    }
    assert of_several == {"/predict/several", "/v2/models/several/infer", "/v1/models/several:predict"}
    body = paths["/predict/several"]["post"]["requestBody"]["content"]
    assert body.keys() == {"application/json"}, "two inputs go as JSON alone"
    inputs = body["application/json"]["schema"]["properties"]["inputs"]
    assert inputs["required"] == ["</td><script>", "n"]
    assert "/predict/clipped/versions/1" in paths
    pictures = paths["/predict/photos"]["post"]["requestBody"]["content"]
    assert pictures.keys() >= {"image/jpeg", "image/png", "multipart/form-data"}
    assert document["components"]["parameters"]["path-model"]["schema"]["enum"] == [
        "clipped",
        "lengths",
        "photos",
        "several",
    ]


def test_every_example_is_answered_as_it_says(server: ServerProcess, document: Any) -> None:
    sent = 0
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            if "example" not in content:
                continue
            jsonschema.validate(
                content["example"], content["schema"] | {"components": document["components"]}
            )
            answer = server.post(path, json=content["example"])
            assert (method, answer.status_code) == ("post", 200), (path, answer.text)
            described = operation["responses"]["200"]["content"]["application/json"]["schema"]
            # References lead into the document.
            whole = {**described, "components": document["components"]}
            jsonschema.validate(answer.json(), whole)
            sent += 1
    assert sent == 4 * 3 + 2 * 3 + 2 + 1, "each model, each of two versions, the default model, the index"


def test_it_is_what_the_server_does(
    server: ServerProcess, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    command = [Path(sysconfig.get_path("scripts")) / "schemathesis", "run", f"{server.url}/openapi.json"]
    examples = request.config.getoption("--openapi-examples")
    options = ("--phases", "examples,coverage,fuzzing", "--max-examples", examples, "--seed", "11")
    # Shrinking a failure takes longer than all the rest.
    more = ("--checks", CHECKS, "--continue-on-failure", "--no-shrink", "--warnings", "off", "--no-color")
    done = subprocess.run(
        [*command, *options, *more],
        cwd=tmp_path,  # where it keeps what it found
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SCHEMATHESIS_HOOKS": "tests.e2e.schemathesis_hooks",
            "EXACT_PATHS": EXACT,
        },
        capture_output=True,
        text=True,
        timeout=600 + 10 * float(examples),
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
    tested = re.search(r"Tested: (\d+)", done.stdout)
    operations = sum(map(len, server.get("/openapi.json").json()["paths"].values()))
    assert tested is not None
    assert int(tested[1]) == operations - 1, "all but the document's own address"
