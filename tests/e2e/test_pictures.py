"""Pictures sent to a real server with two API servers: answers are the eager network's to the decoded picture, and
docs/pictures.md says what happens."""

import base64
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torch import nn

from foldserve.models.export import export_model
from foldserve.models.image_input import ImageInput
from foldserve.service.artifact.pictures import PictureInput, decode
from tests.e2e.server_process import START_LIMIT_S, ServerProcess, serving
from tests.models.support import randomise_norms

pytestmark = pytest.mark.e2e

DOCS = Path(__file__).resolve().parents[2] / "docs"
LABELS = ("red", "green", "blue")
JPEG = {"Content-Type": "image/jpeg"}


def saved(picture: Image.Image, kind: str = "JPEG", **how: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **how)
    return file.getvalue()


@dataclass(frozen=True)
class Pictured:
    """A running server, and the network behind its model `photos`."""

    server: ServerProcess
    network: ImageInput
    image: PictureInput

    def eager(self, body: bytes) -> np.ndarray:
        with torch.no_grad():
            scores: np.ndarray = self.network(torch.from_numpy(decode(body, self.image)[None])).numpy()
        return scores


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pictured]:
    folder = tmp_path_factory.mktemp("pictures")
    namespace: dict[str, Any] = {}
    exec(page_module(), namespace)
    colours = namespace["colours"]()
    export_model(colours, colours.example_inputs(), folder / "repository", name="colours", labels=LABELS)
    body = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    network = randomise_norms(nn.Sequential(*body, nn.Linear(4, 3))).eval()
    module = ImageInput(network, [120.0] * 3, [60.0] * 3, size=56, resize_to=64, layout="CHW")
    done = export_model(module, module.example_inputs(), folder / "repository", name="photos", labels=LABELS)
    output = folder / "output"
    with serving(folder / "repository", output, "--api-servers", "2") as server:
        server.wait_until("/v2/health/ready", 200)
        yield Pictured(server, module, PictureInput.from_manifest(done.report["image"]))


def page_module() -> str:
    """my_pictures.py of docs/your-network.md, whose model docs/pictures.md sends pictures to."""
    (module,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", (DOCS / "your-network.md").read_text(), re.DOTALL)
        if "def colours" in block
    ]
    return str(module)


def photos() -> dict[str, bytes]:
    """Files as cameras, browsers and programs make them."""
    photo = Image.fromarray(skimage.data.astronaut()[:300])
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "JPEG": saved(photo),
        "progressive": saved(photo, progressive=True, quality=70),
        "turned": saved(photo, exif=turned),
        "PNG": saved(photo, "PNG"),
        "grey": saved(photo.convert("L")),
        "CMYK": saved(photo.convert("CMYK")),
        "alpha": saved(photo.convert("RGBA"), "PNG"),
        "palette": saved(photo.convert("P"), "PNG"),
        "tiny": saved(photo.resize((3, 2)), "PNG"),
    }


def test_the_answer_to_a_file_is_eagers_to_the_decoded_picture(pictured: Pictured) -> None:
    for name, body in photos().items():
        kind = "image/png" if body[:1] == b"\x89" else "image/jpeg"
        answer = pictured.server.post("/predict/photos?top=3", content=body, headers={"Content-Type": kind})
        assert answer.status_code == 200, (name, answer.text)
        expected = pictured.eager(body)
        # The project's promise in float32: the largest difference, by the largest value.
        close = 1e-4 * np.abs(expected).max()
        assert np.abs(np.array(answer.json()["outputs"]["y"]) - expected).max() <= close, name
        order = [LABELS[at] for at in np.argsort(-expected[0])]
        assert [one["label"] for one in answer.json()["top"]] == order, name
        rows = {"instances": [{"b64": base64.b64encode(body).decode()}] * 2}
        again = pictured.server.post("/v1/models/photos:predict", json=rows).json()["predictions"]
        assert np.abs(np.array(again) - expected).max() <= close, name


def test_torchserves_clients_put_the_file_and_are_told_labels_with_probabilities(pictured: Pictured) -> None:
    for name, body in photos().items():
        answer = httpx.put(
            f"{pictured.server.url}/predictions/photos", content=body, timeout=START_LIMIT_S, verify=False
        )
        assert answer.status_code == 200, (name, answer.text)
        (expected,) = torch.from_numpy(pictured.eager(body)).softmax(dim=1).tolist()
        order = sorted(range(3), key=lambda at: -expected[at])
        assert list(answer.json()) == [LABELS[at] for at in order], name
        # The scores agree to 1e-4 of the largest, and a probability changes less than they do.
        found = [answer.json()[label] for label in LABELS]
        assert found == pytest.approx(expected, abs=1e-3), name


def test_many_at_once_get_their_own_answers_beside_files_that_are_refused(pictured: Pictured) -> None:
    """Over both API servers: the connections are shared between them."""
    random = np.random.default_rng(3)
    good = [saved(Image.fromarray(random.integers(0, 256, (80, 90, 3), dtype=np.uint8))) for _ in range(16)]
    bad = [b"", good[0][:500], b"GIF89a" + good[1], saved(Image.new("RGB", (9, 9)), "PNG")]
    expected = [pictured.eager(body) for body in good]

    def ask(turn: int) -> tuple[int, Any, int, str]:
        with httpx.Client(base_url=pictured.server.url, timeout=START_LIMIT_S, verify=False) as client:
            answer = client.post("/predict/photos", content=good[turn % 16], headers=JPEG)
            refused = client.post("/predict/photos", content=bad[turn % 4], headers=JPEG)
        return answer.status_code, answer.json(), refused.status_code, refused.json()["code"]

    with ThreadPoolExecutor(8) as threads:
        for turn, (status, answer, refused, code) in enumerate(threads.map(ask, range(64))):
            assert (status, refused, code) == (200, 400, "bad_picture")
            scores = expected[turn % 16]
            assert np.abs(np.array(answer["outputs"]["y"]) - scores).max() <= 1e-4 * np.abs(scores).max()
    assert (
        pictured.server.metric(
            "foldserve_requests_total", model="photos", version="1", protocol="picture", code="400"
        )
        == 64
    )


def test_the_page_says_what_happens(pictured: Pictured, tmp_path: Path) -> None:
    text = (DOCS / "pictures.md").read_text()
    here = pictured.server.url.removeprefix("http://")
    script = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)).replace(
        "localhost:8000", here
    )
    script = script.replace("curl ", "curl -sSf ").replace("python3 ", f"{sys.executable} ")
    script = script.replace("foldserve ", f"{Path(sys.executable).parent / 'foldserve'} ")
    python = "".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)).replace(
        "localhost:8000", here
    )
    printed = []
    for command in (["bash", "-ec", script], [sys.executable, "-c", python]):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    (example,) = re.findall(r"^```json\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    shown = re.sub(r"(\.\d\d)\d+", r"\1", re.sub(r"[ \n]", "", "".join(printed)))
    assert shown.count(re.sub(r"[ \n]", "", example)) == 2, shown
    assert shown.count('"top":[{"label":"red"') == 3
    assert "'label':'red'" in shown
