"""From a JPEG or PNG to the input of a network, by the `image` of its manifest.

    body -> decoded, upright, RGB or grey -> resized and cropped (pixels) -> laid out as the input (decode)

The one place that does it: the export proves the files on what comes out here (models/export/verify/picture_cases.py),
and whoever sends pictures gets the same bytes. Means and deviations are in the network itself. Knows nothing of torch,
HTTP or models; Pillow is imported on first use.
"""

import contextlib
import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from foldserve.service.errors import BadPicture

if TYPE_CHECKING:
    from PIL import Image

RESIZES: Final = ("crop", "stretch", "pad")
INTERPOLATIONS: Final = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
CHANNELS: Final[Mapping[str, int]] = {"RGB": 3, "grey": 1}
LAYOUTS: Final = ("HWC", "CHW")
FORMATS: Final = ("JPEG", "PNG")
MOST_PIXELS: Final = 50_000_000
"""Of a picture, before and after it is resized: four bytes of memory each. A file of some kilobytes can claim more."""
_MOST_SCANNED: Final = 20 * MOST_PIXELS
"""Pixels times scans of a JPEG: a progressive one has about ten, each a walk over the whole picture, and a small file
can hold thousands."""
_MOST_READS: Final = 100_000
"""Of a file, a few for each of its parts. Pillow walks over them in Python, some microseconds each, and a file can have
millions of empty ones."""
_START_OF_SCAN: Final = b"\xff\xda"
_STARTS: Final = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n"}
_SHOWN_CHARS: Final = 200
_MODES: Final = {"RGB": "RGB", "grey": "L"}


@dataclass(frozen=True)
class PictureInput:
    """How a picture becomes an input; the keys of `image` in the manifest.

    input: the input's name, UINT8.
    size: height and width in pixels; None where pictures are taken in the size that they have.
    resize: how a picture of another shape gets that size. "crop": resized, shape kept, until the shorter side has
        `resize_to` pixels (None: until it just covers `size`), and the middle is cut out. "stretch": both sides are
        resized. "pad": resized, shape kept, until it fits into `size`, in the middle of a picture of `fill`.
    resize_to: pixels of the shorter side; only for "crop", at least as large as both sizes.
    interpolation: Pillow's filter of that name.
    fill: a byte, 0 to 255, alike for all channels.
    colour: "RGB", or "grey" (one channel: ITU-R 601-2 luma).
    layout: "HWC", as Pillow, OpenCV and browsers have pictures, or "CHW", as torch has them.
    """

    input: str
    size: tuple[int, int] | None = None
    resize: str = "crop"
    resize_to: int | None = None
    interpolation: str = "bilinear"
    fill: int = 0
    colour: str = "RGB"
    layout: str = "HWC"

    def __post_init__(self) -> None:
        problem = next(iter(problems(vars(self))), None)
        if problem:
            raise ValueError(problem)

    @staticmethod
    def from_manifest(image: Mapping[str, Any]) -> "PictureInput":
        """Raises: ValueError for what is not a valid `image` of a manifest; other keys are ignored."""
        known = {field.name: image[field.name] for field in fields(PictureInput) if field.name in image}
        if isinstance(known.get("size"), list):
            known["size"] = tuple(known["size"])
        try:
            return PictureInput(**known)
        except TypeError as error:
            raise ValueError(f"image lacks a key: {error}") from error

    def to_manifest(self) -> dict[str, Any]:
        return {**vars(self), "size": None if self.size is None else list(self.size)}


def problems(values: Mapping[str, Any]) -> Sequence[str]:
    """What is wrong with the values of a PictureInput, each as `name value; expected ...`."""
    size, resize_to = values["size"], values["resize_to"]
    found = []
    if size is not None and not (
        isinstance(size, tuple) and len(size) == 2 and all(_whole(side, 1, MOST_PIXELS) for side in size)
    ):
        found.append(f"size {size!r}; expected height and width in pixels, such as (224, 224)")
    for name, known in (
        ("resize", RESIZES),
        ("interpolation", INTERPOLATIONS),
        ("colour", tuple(CHANNELS)),
        ("layout", LAYOUTS),
    ):
        if values[name] not in known:
            found.append(f"{name} {values[name]!r}; expected one of {', '.join(known)}")
    if not _whole(values["fill"], 0, 255):
        found.append(f"fill {values['fill']!r}; expected a byte, 0 to 255")
    if resize_to is not None and not found:
        least = max(size or (1,))
        if values["resize"] != "crop" or size is None:
            found.append(f"resize_to {resize_to!r}; expected it only with a size and resize 'crop'")
        elif not _whole(resize_to, least, MOST_PIXELS):
            found.append(f"resize_to {resize_to!r}; expected pixels of the shorter side, {least} or more")
    return found


def decode(body: bytes, image: PictureInput, formats: Sequence[str] = FORMATS) -> np.ndarray:
    """Return the picture in body as one row of the input: uint8, (H, W, C) or (C, H, W) as `image.layout` says.

    The array is contiguous and the caller's own. formats: those of FORMATS that the body may have.

    Raises: BadPicture.
    """
    return _laid_out(_array(_open(body, formats), image), image)


def decode_all(bodies: Sequence[bytes], image: PictureInput) -> list[np.ndarray]:
    """decode() each. MOST_PIXELS bounds them together. Raises: BadPicture, which says which of them."""
    rows: list[np.ndarray] = []
    left = MOST_PIXELS
    for at, body in enumerate(bodies):
        try:
            picture = _open(body, FORMATS)
            left -= max(picture.width * picture.height, math.prod(image.size or ()))
            if left < 0:
                raise BadPicture(
                    f"the pictures before it and it have more than {MOST_PIXELS:,} pixels together, in the file or "
                    "resized; send fewer in one request"
                )
            rows.append(_laid_out(_array(picture, image), image))
        except BadPicture as error:
            raise BadPicture(f"picture {at}: {error}") from error
    return rows


def pixels(body: bytes, image: PictureInput) -> np.ndarray:
    """Return the picture in body, resized and cropped: uint8, (H, W, 3) RGB or (H, W, 1) grey. Raises: BadPicture.

    Turned as its EXIF data says; transparency is dropped, 16 bits become 8.
    """
    return _array(_open(body, FORMATS), image)


def _laid_out(array: np.ndarray, image: PictureInput) -> np.ndarray:
    return np.array(array.transpose(2, 0, 1) if image.layout == "CHW" else array, order="C")


def _array(picture: "Image.Image", image: PictureInput) -> np.ndarray:
    with _pillows_errors():
        array = np.asarray(_resized(_converted(picture, image.colour), image))
    return array[:, :, None] if array.ndim == 2 else array


def _open(body: bytes, formats: Sequence[str]) -> "Image.Image":
    """The picture, of which only the head was read. Raises: BadPicture."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise BadPicture(f"pictures need the package pillow ({error}): pip install pillow") from error
    with _pillows_errors():
        try:
            picture = Image.open(_Reads(body), formats=tuple(formats))
        except UnidentifiedImageError as error:
            raise BadPicture(_no_picture(body, formats)) from error
        except Image.DecompressionBombError as error:
            raise BadPicture(f"the picture is too large: expected at most {MOST_PIXELS:,} pixels") from error
        _check_pixels(*picture.size)
        _check_work(picture, body)
    return picture


class _Reads(io.BytesIO):
    """A file that can be read so often and no more."""

    def __init__(self, body: bytes) -> None:
        super().__init__(body)
        self._left = _MOST_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """See io.BytesIO. Raises: BadPicture."""
        self._left -= 1
        if self._left < 0:
            raise BadPicture(
                "the picture's file has too many parts, which take too long to read; save it anew with any program"
            )
        return super().read(size)


@contextlib.contextmanager
def _pillows_errors() -> Iterator[None]:
    """Have what Pillow raises raised as BadPicture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote the file: they are no words of ours
            yield
    except BadPicture:
        raise
    except (
        Exception
    ) as error:  # damaged pictures stop the decoders in any way there is: OSError, SyntaxError ...
        why = str(error)[:_SHOWN_CHARS]
        raise BadPicture(
            f"the picture cannot be decoded ({why}); it may be damaged or cut short, as by `curl -d @file`, which "
            "drops bytes: --data-binary @file sends all"
        ) from error


def _converted(picture: "Image.Image", colour: str) -> "Image.Image":
    """The picture upright, in 8 bits of that colour. It is decoded here, and copied only where it must be another."""
    from PIL import Image, ImageOps

    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode.startswith("I"):  # 16 bits; Pillow's own conversion would clip them at 255
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    wanted = _MODES[colour]
    return picture if picture.mode == wanted else picture.convert(wanted)


def format_of(body: bytes) -> str | None:
    """The format of a picture's file, by how it begins; None for none that can be read."""
    return next((name for name, start in _STARTS.items() if body.startswith(start)), None)


def _no_picture(body: bytes, formats: Sequence[str]) -> str:
    found, expected = format_of(body), " or ".join(formats)
    if not body:
        return f"the body is empty; expected the bytes of a {expected} file"
    if found is not None and found not in formats:
        return f"the body is a {found} picture, and the request says {expected}: send it as what it is"
    return f"the body is not a {expected} picture; expected the bytes of such a file"


def _check_work(picture: "Image.Image", body: bytes) -> None:
    """Raise BadPicture for a file of several pictures, of which none is meant, or of more scans than any needs."""
    if picture.format == "PNG" and getattr(picture, "is_animated", False):
        raise BadPicture("the PNG is animated; expected one picture: send one of its frames")
    if picture.format != "PNG":
        scans = body.count(_START_OF_SCAN)
        if picture.width * picture.height * scans > _MOST_SCANNED:
            raise BadPicture(
                f"the JPEG has {picture.width} x {picture.height} pixels in {scans} scans, which take too long to "
                "decode; save it as a baseline JPEG"
            )


def _check_pixels(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise BadPicture(f"the picture has {width} x {height} pixels; expected at most {MOST_PIXELS:,}")


def _resized(picture: "Image.Image", image: PictureInput) -> "Image.Image":
    from PIL import Image

    if image.size is None:
        return picture
    height, width = image.size
    inner = _inner_size(picture.width, picture.height, image)
    _check_pixels(*inner)
    resized = picture.resize(inner, Image.Resampling[image.interpolation.upper()])
    if image.resize == "pad":
        canvas = Image.new(picture.mode, (width, height), (image.fill,) * len(picture.getbands()))
        canvas.paste(resized, ((width - inner[0]) // 2, (height - inner[1]) // 2))
        return canvas
    # To whole pixels as torchvision's CenterCrop does it.
    left, top = round((inner[0] - width) / 2), round((inner[1] - height) / 2)
    return resized.crop((left, top, left + width, top + height))


def _inner_size(width: int, height: int, image: PictureInput) -> tuple[int, int]:
    """Width and height of the resized picture, before it is cut or padded; longer sides as torchvision's Resize."""
    assert image.size is not None
    high, wide = image.size
    if image.resize == "stretch":
        return wide, high
    # Whether the height is what binds: it has further to go than the width, in proportion.
    by_height = high * width >= wide * height
    if image.resize == "pad":
        by_height = not by_height
    if image.resize_to is not None:
        by_height, high, wide = height < width, image.resize_to, image.resize_to
    if by_height:
        return max(1, int(high * width / height)), high
    return wide, max(1, int(wide * height / width))


def _whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
