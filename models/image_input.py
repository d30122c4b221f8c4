"""Let a network take pictures as bytes: what happens to a picture is declared here, once.

    JPEG -> decoded, resized, cropped -> uint8 -> ImageInput: layout, colours, mean, std -> network
            (service/artifact/pictures.py)

A quarter of the body of floats, and nothing for the client to normalise. The export writes the declaration into the
manifest (`image`) and proves the files on decoded pictures (export/picture_cases.py).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foldserve.service.artifact.pictures import CHANNELS, LAYOUTS, PictureInput

_GREY = "grey"
COLOURS = ("RGB", "BGR", _GREY)


class ImageInput(nn.Module):
    """Take uint8 pictures, and run the network on ((byte * scale) - mean) / std.

    Args:
        network: takes float (N, C, H, W).
        mean, std: of byte * scale: one number, or one per channel in the order of `colour`.
        scale: 1 for mean and std in units of a byte, 1 / 255 for those published for pictures in [0, 1] (0.485 ...).
        size: pixels of a side, or (height, width), that the network takes; None for the size of the export's example,
            or of each picture where the example's height and width are dynamic.
        resize, resize_to, interpolation, fill: how a JPEG or PNG of another shape gets that size; pictures.PictureInput
            tells. The default is a crop from the middle; torchvision's Resize(256) and CenterCrop(224) are size=224,
            resize_to=256.
        colour: what the network was trained with: "RGB", "BGR" or "grey". Pictures always come as RGB (or grey), and
            are turned around inside. None: RGB where there are three channels, grey where there is one.
        layout: how pictures come: "HWC", as Pillow and OpenCV have them, or "CHW". None: as the example lies; HWC where
            there is none.
    Shape: in uint8 (N, H, W, C) or (N, C, H, W), out whatever network answers.
    Raises: ValueError at construction for values that cannot be, telling what was expected.
    Export: TorchScript and ONNX; what is dynamic in network is dynamic here. The arithmetic has the dtype of
        mean, so .double() makes all of it float64.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: float | Sequence[float],
        std: float | Sequence[float],
        *,
        scale: float = 1.0,
        size: int | Sequence[int] | None = None,
        resize: str = "crop",
        resize_to: int | None = None,
        interpolation: str = "bilinear",
        fill: int = 0,
        colour: str | None = None,
        layout: str | None = None,
    ) -> None:
        super().__init__()
        _check_numbers(mean, std, scale, colour, layout)
        means = torch.tensor(mean, dtype=torch.float64).reshape(-1) / scale
        stds = torch.tensor(std, dtype=torch.float64).reshape(-1) / scale
        self.network = network
        # Constants of the wrapper, not weights: the state dict stays the network's, under "network.".
        self.register_buffer("mean", means.float()[:, None, None], persistent=False)
        self.register_buffer("std", stds.float()[:, None, None], persistent=False)
        self.declared = {"scale": scale, "mean": mean, "std": std}
        self.colour = colour
        self.layout = layout
        sides = (size, size) if isinstance(size, int) else size if size is None else tuple(size)
        self.geometry: dict[str, Any] = {
            "size": sides,
            "resize": resize,
            "resize_to": resize_to,
            "interpolation": interpolation,
            "fill": fill,
        }
        try:
            PictureInput("pictures", **self.geometry)
        except ValueError as error:
            raise ValueError(f"ImageInput got {error}") from None

    def forward(self, pictures: Tensor) -> Tensor:
        channels_first = pictures if self.layout_of(pictures.shape) == "CHW" else pictures.permute(0, 3, 1, 2)
        if self.colour == "BGR":
            channels_first = channels_first.flip(1)
        y: Tensor = self.network((channels_first.to(self.mean.dtype) - self.mean) / self.std)
        return y

    def layout_of(self, shape: Sequence[int]) -> str:
        """ "CHW" or "HWC": as declared, or else where pictures of this shape have their channels."""
        if self.layout is not None:
            return self.layout
        counts = self._channel_counts()
        return "HWC" if shape[1] not in counts and shape[-1] in counts else "CHW"

    def example_inputs(self, rows: int = 2) -> tuple[Tensor, ...]:
        """Random pictures for an export. Raises: ValueError without a size."""
        if self.geometry["size"] is None:
            raise ValueError("ImageInput has no size, so it has no example; give it one: size=224")
        generator = torch.Generator().manual_seed(0)
        channels = self._channel_counts()[0]
        shape = (
            (*self.geometry["size"], channels) if self.layout != "CHW" else (channels, *self.geometry["size"])
        )
        return (torch.randint(0, 256, (rows, *shape), generator=generator, dtype=torch.uint8),)

    def network_input(self, pictures: np.ndarray) -> Tensor:
        """What the network is to get, by the definition and in float64: the proof's other side.

        pictures: uint8 (N, H, W, C), RGB or grey, as decoded.
        """
        mean, std = (buffer.double().flatten().cpu().numpy() for buffer in (self.mean, self.std))
        ordered = pictures[..., ::-1] if self.colour == "BGR" else pictures
        floats = (ordered.astype(np.float64) - mean) / std
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(floats, -1, 1)))

    def _channel_counts(self) -> tuple[int, ...]:
        if self.mean.numel() > 1:
            return (self.mean.numel(),)
        if self.colour is not None:
            return (1,) if self.colour == _GREY else (3,)
        return (3, 1)


def _check_numbers(mean: Any, std: Any, scale: Any, colour: Any, layout: Any) -> None:
    means, stds = np.atleast_1d(np.asarray(mean, float)), np.atleast_1d(np.asarray(std, float))
    if means.shape != stds.shape or means.ndim > 1:
        raise ValueError(
            f"ImageInput got mean {mean} and std {std}; expected one number each, or one per channel"
        )
    if not (np.isfinite(means).all() and np.isfinite(stds).all() and (stds > 0).all()):
        raise ValueError(
            f"ImageInput got mean {mean} and std {std}; expected numbers above 0, in units of a byte (0 to 255) "
            "or of byte * scale, for std"
        )
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
        raise ValueError(f"ImageInput got scale {scale!r}; expected a number above 0, such as 1 / 255")
    for name, value, known in (("colour", colour, COLOURS), ("layout", layout, LAYOUTS)):
        if value is not None and value not in known:
            raise ValueError(f"ImageInput got {name} {value!r}; expected one of {', '.join(known)}")
    channels = 1 if colour == _GREY else 3
    if colour is not None and len(means) not in (1, channels):
        raise ValueError(
            f"ImageInput got {len(means)} means for {colour} pictures; expected 1 or {channels}, one per channel"
        )


def picture_input(module: ImageInput, name: str, shape: Sequence[int | None]) -> PictureInput | None:
    """Settle what module leaves to the example, in module itself, and return its declaration.

    name, shape: of the input; None in shape where a dim is dynamic. None is returned for pictures of other channels
    than a JPEG or PNG gives.
    Raises: ValueError for an example that does not fit the declaration.
    """
    size = module.geometry["size"]
    described = f"({', '.join('?' if n is None else str(n) for n in shape)})"
    if len(shape) != 4:
        raise ValueError(
            f"ImageInput got an example of the shape {described}; expected 4 dims, such as (N, H, W, C)"
        )
    # -1 for what is dynamic: no number of channels.
    layout = module.layout_of([-1 if n is None else n for n in shape])
    channels = shape[3] if layout == "HWC" else shape[1]
    sides = tuple(shape[1:3] if layout == "HWC" else shape[2:])
    if (module.layout or module.colour or size) and channels not in module._channel_counts():
        raise ValueError(
            f"ImageInput got an example of the shape {described}; expected "
            f"{' or '.join(map(str, module._channel_counts()))} channels in "
            f"{'the last dim' if layout == 'HWC' else 'dim 1'}, as layout {layout} has them"
        )
    if size is not None and any(side not in (None, n) for side, n in zip(sides, size, strict=True)):
        raise ValueError(
            f"ImageInput got an example of the shape {described}; expected pictures of {size[0]} x {size[1]}, as its "
            "size says"
        )
    module.layout = layout
    if channels not in CHANNELS.values():
        return None
    module.colour = module.colour or ("RGB" if channels == 3 else _GREY)
    if size is None and None not in sides:
        size = sides
    settled = {**module.geometry, "size": size}
    return PictureInput(name, **settled, colour=_GREY if module.colour == _GREY else "RGB", layout=layout)


def image_of_manifest(module: nn.Module, picture: PictureInput | None) -> dict[str, Any] | None:
    """`image` of the manifest: what is done to a picture before the file, and under `inside` what the file does.

    None for a network that takes no pictures.
    """
    if picture is None or not isinstance(module, ImageInput):
        return None
    inside = {name: np.asarray(value, float).tolist() for name, value in module.declared.items()}
    return {**picture.to_manifest(), "inside": {"colour": module.colour, **inside}}
