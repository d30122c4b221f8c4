"""EfficientNet-Lite0 on real pictures: the published weights give the right names."""

import builtins
import io

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from foldserve.models import efficientnet_lite0
from foldserve.models.errors import MissingExtra
from foldserve.models.image_input import picture_input
from foldserve.service.artifact.pictures import decode


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return efficientnet_lite0.build().eval()


def decoded(picture: str) -> np.ndarray:
    """A batch of the picture as its file becomes the input that build_uint8 declares."""
    file = io.BytesIO()
    Image.fromarray(getattr(skimage.data, picture)()).save(file, "PNG")
    (example,) = efficientnet_lite0.example_inputs_uint8()
    image = picture_input(efficientnet_lite0.build_uint8(), "pictures", (None, *example.shape[1:]))
    return decode(file.getvalue(), image)[None]


@pytest.mark.parametrize(
    ("picture", "number", "label"), [("chelsea", 285, "Egyptian cat"), ("coffee", 967, "espresso")]
)
def test_picture_is_named_right_by_the_float_and_by_the_uint8_network(network, picture, number, label):
    pixels = efficientnet_lite0.resized(getattr(skimage.data, picture)())
    assert (pixels.shape, pixels.dtype) == ((3, 224, 224), np.uint8)
    with torch.inference_mode():
        logits = network(torch.from_numpy(efficientnet_lite0.normalised(pixels[None])))
        of_bytes = efficientnet_lite0.build_uint8().eval()(torch.from_numpy(decoded(picture)))
    assert int(logits.argmax()) == number
    assert efficientnet_lite0.labels()[number] == label
    # Measured 0.77 and 0.90; well above a half means that no other name is close.
    assert logits.softmax(1).max() > 0.7
    # (byte - 127) / 128 is exact in float32, wherever it is computed; the first convolution reads channels that lie
    # last in memory, and sums in another order.
    assert (of_bytes - logits).abs().max() < 1e-5 * logits.abs().max()


def test_labels_are_a_thousand_different_names():
    labels = efficientnet_lite0.labels()
    assert len(labels) == len(set(labels)) == 1000
    assert all(label == label.strip() != "" for label in labels)
    assert (labels[0], labels[999]) == ("tench", "toilet tissue")


def test_missing_package_is_answered_with_the_extra_to_install(monkeypatch):
    real = builtins.__import__

    def without_the_package(name, *args, **kwargs):
        if name == "efficientnet_lite_pytorch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_the_package)
    with pytest.raises(MissingExtra, match=r"efficientnet-lite-pytorch.*pip install 'foldserve\[demo\]'"):
        efficientnet_lite0.build()
