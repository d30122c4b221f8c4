"""/openapi.json of a real server: valid, of the models that are loaded, and what the server does: schemathesis sends
what the document allows and what it forbids, and compares every answer with it.

`make test ARGS='tests/e2e/test_openapi.py --openapi-examples 100'` is the long form, which `make torture` runs: every
call, and so many random requests of each besides those that follow from the document.
"""

import json
import os
import re
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from openapi_spec_validator import validate
from torch import nn

from foldserve.models.export import export_model
from foldserve.models.image_input import ImageInput
from tests.e2e.server_process import START_LIMIT_S, ServerProcess, serving
from tests.service.repositories import WEIGHT, save_onnx

pytestmark = pytest.mark.e2e

CHECKS = (
    "status_code_conformance,content_type_conformance,response_schema_conformance,response_headers_conformance,"
    "not_a_server_error,negative_data_rejection,unsupported_method,what_the_document_allows_is_answered"
)
KEYS = {"all": ["infer", "control", "metrics"], "infer": ["infer"], "measuring": ["metrics"]}
"""Their scopes."""
ALIKE = r"version|/lengths|/v2/$|/\d$"
"""What the short form leaves out: calls that differ from others by their path alone."""
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


def key_of(name: str) -> str:
    return f"the-key-of-{name}-0123456789"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("openapi")
    save_models(folder / "repository")
    entries = [{"name": name, "key": key_of(name), "scopes": scopes} for name, scopes in KEYS.items()]
    (folder / "keys.yaml").write_text(json.dumps(entries))
    options = ("--default-model", "clipped", "--api-servers", "1", "--client-shared-memory")
    keys = ("--keys", str(folder / "keys.yaml"))
    with serving(folder / "repository", folder / "output", *options, *keys) as running:
        running.headers = {"x-api-key": key_of("all")}
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
    assert of_several == {
        "/predict/several",
        "/predictions/several",
        "/v1/models/several:predict",
        "/v2/models/several/infer",
    }
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
            answer = server.post(path, json=content["example"], headers=server.headers)
            assert (method, answer.status_code) == ("post", 200), (path, answer.text)
            described = operation["responses"]["200"]["content"]["application/json"]["schema"]
            # References lead into the document.
            whole = {**described, "components": document["components"]}
            jsonschema.validate(answer.json(), whole)
            sent += 1
    assert sent == 4 * 4 + 2 * 4 + 2 + 1, "each model, each of two versions, the default model, the index"


def test_each_call_needs_the_key_that_it_says(server: ServerProcess, document: Any) -> None:
    """Without a key 401, with one that lacks the scope 403, and neither where none is needed."""
    schemes = document["components"]["securitySchemes"]
    assert {(one["type"], one.get("scheme", one.get("name"))) for one in schemes.values()} == {
        ("http", "bearer"),
        ("apiKey", "X-Api-Key"),
    }
    seen = set()
    with httpx.Client(base_url=server.url, verify=False, timeout=START_LIMIT_S) as client:
        for path, methods in document["paths"].items():
            there = path.format(model="clipped", version="1", versions="all", file="page.js", name="one")
            for method, operation in methods.items():
                needed = operation.get("security", document["security"])
                assert all([*one.values()] == [*needed[0].values()] for one in needed), "either scheme"
                scopes = next(iter(needed[0].values())) if needed else []
                for name, has in ((None, []), *KEYS.items()):
                    if needed and name == "all":
                        continue
                    headers = {} if name is None else {"x-api-key": key_of(name)}
                    status = client.request(method, there, headers=headers).status_code
                    wanted = 401 if name is None else 403
                    refused = bool(needed) and not set(scopes) <= set(has)
                    assert (status == wanted) == refused, (method, path, name, status)
                    assert not refused or str(wanted) in operation["responses"]
                seen.add(tuple(scopes))
    assert seen == {(), ("infer",), ("metrics",), ("control",)}


def test_it_is_what_the_server_does(
    server: ServerProcess, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    command = [Path(sysconfig.get_path("scripts")) / "schemathesis", "run", f"{server.url}/openapi.json"]
    examples = int(request.config.getoption("--openapi-examples"))
    phases = ("--phases", "examples,coverage", "--exclude-path-regex", ALIKE)
    if examples:
        phases = ("--phases", "examples,coverage,fuzzing", "--max-examples", str(examples))
    options = (*phases, "--seed", "11", "--header", f"X-Api-Key: {key_of('all')}")
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
        timeout=600 + 10 * examples,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
    tested = re.search(r"Tested: (\d+)", done.stdout)
    paths = server.get("/openapi.json").json()["paths"]
    operations = sum(len(paths[path]) for path in paths if examples or not re.search(ALIKE, path))
    assert tested is not None
    assert int(tested[1]) == operations - 1, "all but the document's own address"
