"""models/image_input.py: what is declared of a picture is what the network gets."""

import numpy as np
import pytest
import torch
from torch import nn

from foldserve.models.image_input import ImageInput, image_of_manifest, picture_input

RANDOM = np.random.default_rng(0)
PICTURES = RANDOM.integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def given(module: ImageInput, pictures: np.ndarray) -> np.ndarray:
    return module.double()(torch.from_numpy(pictures)).numpy()


@pytest.mark.parametrize(("layout", "first"), [("HWC", False), (None, False), ("CHW", True), (None, True)])
@pytest.mark.parametrize("colour", ["RGB", "BGR", None])
def test_network_gets_channels_first_in_its_own_order_and_scale(layout, first, colour):
    module = ImageInput(nn.Identity(), MEAN, STD, scale=1 / 255, colour=colour, layout=layout)
    got = given(module, np.ascontiguousarray(PICTURES.transpose(0, 3, 1, 2)) if first else PICTURES)
    ordered = PICTURES[..., ::-1] if colour == "BGR" else PICTURES
    want = ((ordered / 255 - MEAN) / STD).transpose(0, 3, 1, 2)
    # The constants are float32, of 24 bits.
    assert np.abs(got - want).max() < 2**-24 * np.abs(want).max() * 4


def test_definition_of_the_proof_is_that_of_the_module():
    for colour in ("RGB", "BGR"):
        module = ImageInput(nn.Identity(), MEAN, STD, scale=1 / 255, colour=colour)
        assert np.allclose(module.network_input(PICTURES).numpy(), given(module, PICTURES), rtol=1e-14)
    grey = ImageInput(nn.Identity(), 127.0, 128.0, colour="grey")
    assert np.allclose(
        grey.network_input(PICTURES[..., :1]).numpy(), given(grey, PICTURES[..., :1]), rtol=1e-14
    )


def test_bytes_as_pillow_has_them_are_the_default_of_an_example():
    module = ImageInput(nn.Identity(), MEAN, STD, size=(8, 6))
    (example,) = module.example_inputs(rows=3)
    assert (tuple(example.shape), example.dtype) == ((3, 8, 6, 3), torch.uint8)
    assert example.max() > 250
    (first,) = ImageInput(nn.Identity(), 1.0, 1.0, size=8, layout="CHW", colour="grey").example_inputs()
    assert tuple(first.shape) == (2, 1, 8, 8)
    with pytest.raises(ValueError, match="has no size, so it has no example; give it one: size=224"):
        ImageInput(nn.Identity(), MEAN, STD).example_inputs()


@pytest.mark.parametrize(
    ("shape", "layout", "size", "colour"),
    [
        ((2, 16, 18, 3), "HWC", (16, 18), "RGB"),
        ((2, 3, 16, 18), "CHW", (16, 18), "RGB"),
        ((2, 1, 16, 18), "CHW", (16, 18), "grey"),
        ((2, 16, 18, 1), "HWC", (16, 18), "grey"),
        ((None, None, None, 3), "HWC", None, "RGB"),
        ((None, 3, None, 18), "CHW", None, "RGB"),
    ],
)
def test_what_is_not_declared_is_taken_from_the_example(shape, layout, size, colour):
    module = ImageInput(nn.Identity(), 127.0, 128.0)
    image = picture_input(module, "x", shape)
    assert (image.input, image.layout, image.size, image.colour) == ("x", layout, size, colour)
    assert module.layout == layout
    written = image_of_manifest(module, image)
    assert written["inside"] == {"colour": colour, "scale": 1.0, "mean": 127.0, "std": 128.0}


def test_pictures_of_other_channels_than_a_jpeg_are_normalised_and_not_declared():
    module = ImageInput(nn.Identity(), [1.0] * 13, [2.0] * 13)
    assert picture_input(module, "x", (None, 13, 8, 8)) is None
    assert module(torch.zeros(1, 13, 8, 8, dtype=torch.uint8)).shape == (1, 13, 8, 8)


@pytest.mark.parametrize(
    ("declared", "shape", "says"),
    [
        ({"layout": "HWC"}, (None, 3, 8, 9), r"shape \(\?, 3, 8, 9\); expected 3 channels in the last dim"),
        ({"layout": "CHW"}, (None, 8, 9, 3), "expected 3 channels in dim 1, as layout CHW"),
        ({"size": (8, 8)}, (None, 8, 9, 3), "expected pictures of 8 x 8, as its size says"),
        ({"colour": "BGR"}, (None, 1, 8, 8), "expected 3 channels"),
        ({}, (None, 8, 3), "expected 4 dims"),
    ],
)
def test_example_that_does_not_fit_the_declaration_is_refused(declared, shape, says):
    with pytest.raises(ValueError, match=says):
        picture_input(ImageInput(nn.Identity(), MEAN, STD, **declared), "x", shape)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"scale": 0}, "scale 0; expected a number above 0, such as 1 / 255"),
        ({"colour": "rgb"}, "colour 'rgb'; expected one of RGB, BGR, grey"),
        ({"layout": "NHWC"}, "layout 'NHWC'; expected one of HWC, CHW"),
        ({"colour": "grey"}, "3 means for grey pictures; expected 1 or 1"),
        ({"size": (1, 2, 3)}, r"ImageInput got size \(1, 2, 3\); expected height and width"),
        ({"size": 224, "resize_to": 200}, "resize_to 200; expected pixels of the shorter side, 224 or more"),
        ({"interpolation": "linear"}, "interpolation 'linear'; expected one of"),
    ],
)
def test_declaration_that_cannot_be_is_refused_at_construction(wrong, says):
    with pytest.raises(ValueError, match=says):
        ImageInput(nn.Identity(), MEAN, STD, **wrong)
