"""A model that takes pictures and one that does not, and pictures to send them."""

import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from foldserve.service.artifact.pictures import PictureInput
from foldserve.service.artifact.signature import Signature, TensorSpec
from tests.service.support import NumpyModels, served

LABELS = ("red", "green", "blue")
IMAGE = PictureInput("pictures", size=(4, 6))
ANY_SIZE = PictureInput("pictures")
COLOURS = Signature((TensorSpec("pictures", "UINT8", (-1, 4, 6, 3)),), (TensorSpec("y", "FP32", (-1, 3)),))
FREE = Signature((TensorSpec("pictures", "UINT8", (-1, -1, -1, 3)),), (TensorSpec("y", "FP32", (-1, 3)),))


def means(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """How red, green and blue a picture is."""
    return {"y": inputs["pictures"].mean(axis=(1, 2), dtype="f4")}


def two(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    y = means(inputs)["y"]
    return {"y": y, "z": -y}


def picture_models() -> NumpyModels:
    """`colours` has labels and takes pictures of 4 x 6, `free` has none and takes any size, `arrays` says nothing of
    pictures, `two` has two outputs."""
    manifests: dict[str, dict[str, Any]] = {
        "colours": {"image": IMAGE.to_manifest(), "labels": list(LABELS)},
        "free": {"image": ANY_SIZE.to_manifest()},
        "arrays": {},
        "two": {"image": IMAGE.to_manifest()},
    }
    outputs = (*COLOURS.outputs, TensorSpec("z", "FP32", (-1, 3)))
    signatures = {"free": FREE, "two": Signature(COLOURS.inputs, outputs)}
    models = {name: served(name, ("1", signatures.get(name, COLOURS))) for name in manifests}
    for name, manifest in manifests.items():
        version = replace(models[name].versions["1"], manifest=manifest)
        models[name] = replace(models[name], versions={"1": version})
    functions = {(name, "1"): two if name == "two" else means for name in manifests}
    return NumpyModels(functions, models)


def photo(
    colour: tuple[int, ...] = (200, 10, 100), size: tuple[int, int] = (90, 70), mode: str = "RGB"
) -> Image.Image:
    """A picture of one colour."""
    return Image.new(mode, size, colour if len(colour) > 1 else colour[0])


def saved(picture: Image.Image, kind: str = "JPEG", **how: Any) -> bytes:
    """Its file."""
    file = io.BytesIO()
    picture.save(file, kind, **how)
    return file.getvalue()
