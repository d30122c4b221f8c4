"""Pictures are inside the proof: files with real bytes, decoded, against the network on what they show."""

import json

import numpy as np
import onnxruntime
import pytest
import skimage.data
import torch
from PIL import Image
from torch import Tensor, nn

from foldserve.models.errors import BadExample, ParityFailed
from foldserve.models.export import export_model
from foldserve.models.export.cli.summary import table
from foldserve.models.export.verify import check_files
from foldserve.models.export.verify.parity import check_file
from foldserve.models.export.writers.torchscript_writer import load_torchscript
from foldserve.models.image_input import ImageInput
from foldserve.service.artifact.manifest import read_manifest
from foldserve.service.artifact.pictures import PictureInput, decode
from tests.models.support import randomise_norms

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def classifier() -> nn.Module:
    body = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    return randomise_norms(nn.Sequential(*body, nn.Linear(4, 3)))


def answers(folder, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (of_onnx,) = session.run(None, {session.get_inputs()[0].name: batch})
    return of_onnx, load_torchscript(folder / "model.pt")(torch.from_numpy(batch)).numpy()


@pytest.mark.parametrize(
    "declared",
    [
        {"size": 24, "resize_to": 28, "scale": 1 / 255},
        {"size": (20, 30), "resize": "pad", "fill": 114, "layout": "CHW", "colour": "BGR"},
        {"size": 24, "resize": "stretch", "interpolation": "bicubic", "colour": "BGR"},
    ],
)
def test_served_answer_to_a_jpeg_is_that_of_the_users_own_program(tmp_path, declared):
    """The user's program: Pillow and numpy, as in training, with no word of ImageInput."""
    network = classifier().eval()
    scale = 255.0 if declared.get("scale") is None else 1.0
    module = ImageInput(network, [m * scale for m in MEAN], [s * scale for s in STD], **declared)
    done = export_model(module, module.example_inputs(), tmp_path, name="m")
    manifest = read_manifest(done.folder, "m/1")
    assert manifest.image == json.loads(done.manifest.read_text())["image"]
    assert manifest.parity["pictures"].max_rel <= 1e-10
    photo = tmp_path / "photo.jpg"
    Image.fromarray(skimage.data.astronaut()[:300]).save(photo)
    batch = decode(photo.read_bytes(), PictureInput.from_manifest(manifest.image))[None]

    picture = Image.open(photo).convert("RGB")  # 512 x 300
    if declared.get("resize") == "stretch":
        picture = picture.resize((24, 24), Image.Resampling.BICUBIC)
    elif declared.get("resize") == "pad":
        canvas = Image.new("RGB", (30, 20), (114, 114, 114))
        canvas.paste(picture.resize((30, 17), Image.Resampling.BILINEAR), (0, 1))
        picture = canvas
    else:
        picture = picture.resize((47, 28), Image.Resampling.BILINEAR).crop((12, 2, 36, 26))
    pixels = np.asarray(picture)[..., ::-1] if declared.get("colour") == "BGR" else np.asarray(picture)
    floats = ((pixels / 255 - MEAN) / STD).transpose(2, 0, 1)[None]
    with torch.no_grad():
        wanted = network(torch.from_numpy(floats.astype(np.float32))).numpy()
    for got in answers(done.folder, batch):
        assert np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max()  # the project's promise in float32


class Mirrored(ImageInput):
    """Does something else with pictures than what it declares."""

    def forward(self, pictures: Tensor) -> Tensor:
        return super().forward(pictures.flip(2))


class Unscaled(ImageInput):
    def forward(self, pictures: Tensor) -> Tensor:
        return self.network(pictures.permute(0, 3, 1, 2).to(self.mean.dtype) - self.mean)


@pytest.mark.parametrize("kind", [Mirrored, Unscaled])
def test_module_that_takes_pictures_otherwise_than_it_declares_is_refused(tmp_path, kind):
    module = kind(classifier(), MEAN, STD, scale=1 / 255, size=24)
    with pytest.raises(ParityFailed, match="output 0 for a decoded picture differs"):
        export_model(module, module.example_inputs(), tmp_path, name="m")
    assert list(tmp_path.iterdir()) == []


def test_decoded_pictures_are_among_the_cases_that_the_files_are_compared_on(tmp_path, monkeypatch):
    module = ImageInput(classifier(), MEAN, STD, scale=1 / 255, size=(20, 26))
    seen = []
    original = check_file

    def watched(label, run, cases, *others):
        seen.append([case for case in cases if not case.fresh][1:])
        return original(label, run, cases, *others)

    monkeypatch.setattr(check_files, "check_file", watched)
    export_model(module, module.example_inputs(), tmp_path, name="m")
    assert len(seen) == 2
    for ((decoded,),) in ([case.inputs for case in cases] for cases in seen):
        assert decoded.shape == (2, 20, 26, 3)
        # Areas as in a photograph: neighbours are alike, as no random bytes are.
        steps = (decoded[:, :, 1:].int() - decoded[:, :, :-1].int()).abs().double().mean()
        assert 1 < steps < 40


def test_floats_in_the_place_of_pictures_are_refused(tmp_path):
    with pytest.raises(
        BadExample, match=r"takes bytes, and the example is torch\.float32; expected torch\.uint8"
    ):
        export_model(ImageInput(classifier(), MEAN, STD), (torch.zeros(2, 3, 9, 9),), tmp_path, name="m")
    module = ImageInput(classifier(), MEAN, STD, size=24)
    with pytest.raises(BadExample, match="expected pictures of 24 x 24"):
        export_model(module, (torch.zeros(2, 9, 9, 3, dtype=torch.uint8),), tmp_path, name="m")


def test_pictures_of_any_size_are_proved_in_their_own(tmp_path):
    module = ImageInput(classifier(), MEAN, STD, scale=1 / 255)
    example = torch.randint(0, 256, (2, 32, 24, 3), dtype=torch.uint8)
    done = export_model(
        module, (example,), tmp_path, name="m", dynamic_axes={"pictures": {1: "height", 2: "width"}}
    )
    assert done.report["image"]["size"] is None
    assert done.report["inputs"][0]["shape"] == [-1, -1, -1, 3]
    assert "JPEG or PNG, any size, RGB, HWC" in table(done)
