"""The trained networks, exported, served and asked: the same labels from every form of each network.

What `make demo` shows, held by tests. The exports take most of the time, so they are made once.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from skimage import data

from foldserve.models import efficientnet_lite0
from foldserve.models.export import export_model
from foldserve.models.registry import resolve
from foldserve.models.train_digits import split
from tests.e2e.server_process import ServerProcess, serving

pytestmark = [
    pytest.mark.e2e,
    # torch 2.13 calls TorchScript outdated; it is one of the two formats that foldserve writes.
    pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated:DeprecationWarning"),
]

PICTURES = {"chelsea": (285, "Egyptian cat"), "coffee": (967, "espresso")}
"""scikit-image's pictures, their ImageNet classes and names."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    for name in ("efficientnet_lite0", "digits"):
        target = resolve(name)
        export_model(
            target.module, target.example_inputs, folder, name=name, version=1, input_names=target.input_names
        )
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(repository, tmp_path_factory.mktemp("server") / "output") as running:
        running.wait_until("/v2/health/ready", 200)
        yield running


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """The two pictures as the network takes them, (2, 3, 224, 224)."""
    return np.stack(
        [
            efficientnet_lite0.normalised(efficientnet_lite0.resized(getattr(data, name)()))
            for name in PICTURES
        ]
    )


def posted(server: ServerProcess, model: str, rows: np.ndarray) -> np.ndarray:
    """The server's answer, sent and received as npy."""
    body = io.BytesIO()
    np.save(body, rows)
    answer = httpx.post(
        f"{server.url}/predict/{model}",
        content=body.getvalue(),
        headers={"content-type": "application/x-npy"},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    return np.load(io.BytesIO(answer.content))


def test_pictures_have_the_same_top_class_eager_scripted_in_onnx_and_served(
    repository: Path, server: ServerProcess, pictures: np.ndarray
) -> None:
    files = repository / "efficientnet_lite0" / "1"
    x = torch.from_numpy(pictures)
    with torch.no_grad():
        eager = resolve("efficientnet_lite0").module.eval()(x).numpy()
        scripted = torch.jit.load(str(files / "model.pt"))(x).numpy()
    (in_onnx,) = ort.InferenceSession(str(files / "model.onnx")).run(None, {"x": pictures})
    expected = [number for number, _ in PICTURES.values()]
    for form, logits in {
        "eager": eager,
        "TorchScript": scripted,
        "ONNX": in_onnx,
        "served": posted(server, "efficientnet_lite0", pictures),
    }.items():
        assert logits.argmax(axis=1).tolist() == expected, form
    assert [efficientnet_lite0.labels()[number] for number in expected] == [
        name for _, name in PICTURES.values()
    ]


def test_every_norm_of_efficientnet_is_folded_out_of_both_files(repository: Path) -> None:
    files = repository / "efficientnet_lite0" / "1"
    assert json.loads((files / "manifest.json").read_text())["fold"] == {
        "found": 49,
        "folded": 49,
        "left": [],
    }
    nodes = {node.op_type for node in onnx.load(files / "model.onnx").graph.node}
    assert "BatchNormalization" not in nodes
    assert "batch_norm" not in str(torch.jit.load(str(files / "model.pt")).inlined_graph)


def test_served_digits_read_the_held_out_ones(server: ServerProcess) -> None:
    held_out = split()
    logits = posted(server, "digits", held_out.held_out_pixels.numpy())
    right = logits.argmax(axis=1) == held_out.held_out_digits.numpy()
    # The bound of the network's docstring; the shipped weights read all 360.
    assert right.mean() >= 0.98
