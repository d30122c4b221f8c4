"""Prove the way from a JPEG to the answer: files with real bytes, decoded, are cases that every file is compared on.

    JPEG, PNG -> pictures.decode -> uint8 -> ImageInput -> answer         what is served, and what the files must answer
              -> pictures.pixels -> (byte * scale - mean) / std -> network -> answer      the definition, in float64

Both eager answers are compared here; the files are compared with them like with any other case (parity.py). So layout,
order of colours, scale, mean and deviation are inside the parity proof.
"""

import io
from collections.abc import Sequence

import numpy as np
import torch

from foldserve.models.errors import BadExample, MissingExtra, ParityFailed
from foldserve.models.export.network.difference import difference
from foldserve.models.export.network.example.example import Example
from foldserve.models.export.verify.parity import FOLD_TOLERANCE, OutputParity, Parity
from foldserve.models.export.verify.reference import EagerReference, ParityCase
from foldserve.models.image_input import ImageInput, picture_input
from foldserve.service.artifact.pictures import PictureInput, decode, pixels

# Wider and higher than what the network takes, so that it is scaled and cut; one of them smaller, so that it grows.
_SCALES = ((1.4, 1.9), (0.7, 0.6))
_QUALITY = 90


def settled_picture(module: ImageInput, example: Example) -> PictureInput | None:
    """The declaration of module, with what it leaves open taken from the example. Raises: BadExample."""
    (tensor,), (axes,) = example.tensors, example.axes
    if tensor.dtype != torch.uint8:
        raise BadExample(f"ImageInput takes bytes, and the example is {tensor.dtype}; expected torch.uint8")
    shape = [None if axis in axes else size for axis, size in enumerate(tensor.shape)]
    try:
        return picture_input(module, example.names[0], shape)
    except ValueError as error:
        raise BadExample(str(error)) from None


def picture_case(
    module: ImageInput, image: PictureInput, example: Example, reference: EagerReference
) -> tuple[ParityCase, Parity]:
    """A batch of decoded pictures with eager's answers, and how far these are from the definition.

    module: its eval copy, settled. Raises: ParityFailed when the module answers otherwise than its declaration says.
    """
    bodies = sample_pictures(image, example)
    batch = torch.from_numpy(np.stack([decode(body, image) for body in bodies]))
    case = reference.case((batch,), fresh=False)
    shown = np.stack([pixels(body, image) for body in bodies])
    defined = reference.run_part_float64("network", module.network_input(shown))
    total: dict[str, OutputParity] = {}
    for index, (got, want) in enumerate(zip(case.wanted, defined, strict=True)):
        found = difference(got, want)
        if not found.max_rel <= FOLD_TOLERANCE:
            raise ParityFailed(
                f"output {index} for a decoded picture differs from that of the network on the picture as its "
                f"ImageInput declares it ({found.max_rel:.1e} relative in float64, tolerance {FOLD_TOLERANCE:.0e}); "
                "a subclass with a forward of its own does this: put it into the network inside"
            )
        total[str(index)] = OutputParity(found, FOLD_TOLERANCE)
    return case, Parity(total, (len(bodies),))


def sample_pictures(image: PictureInput, example: Example) -> Sequence[bytes]:
    """A JPEG and a PNG, of other shapes than the network takes where it has one; the same at every call."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra(
            f"ImageInput is proved on real pictures, which needs the package pillow ({error}): pip install pillow"
        ) from error
    random = np.random.default_rng(0)
    bodies = []
    for (high, wide), kind in zip(_SCALES, ("JPEG", "PNG"), strict=True):
        if image.size is None:
            shape = example.tensors[0].shape
            height, width = shape[1:3] if image.layout == "HWC" else shape[2:]
        else:
            height, width = (
                max(1, round(side * by)) for side, by in zip(image.size, (high, wide), strict=True)
            )
        # Large areas and edges as in a photograph, and grain over them; every channel differs from the others.
        coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
        grain = random.integers(-20, 21, smooth.shape)
        picture = Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))
        file = io.BytesIO()
        picture.save(file, kind, **({"quality": _QUALITY} if kind == "JPEG" else {}))
        bodies.append(file.getvalue())
    return bodies
