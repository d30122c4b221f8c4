"""Pictures as callers have them, as they are sent: the bytes of a JPEG or PNG file. The server decodes them."""

import io
import os
from typing import Any, BinaryIO, Final, NamedTuple, Protocol

from foldserve.service.client.errors import BadInput

_TYPES: Final = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": "image/png"}
"""How files begin, and their media type."""
_OTHERS: Final = {b"GIF8": "a GIF", b"BM": "a BMP", b"II*\0": "a TIFF", b"MM\0*": "a TIFF", b"RIFF": "a WebP"}
_PNG_MODES: Final = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
_FAST: Final = 1
"""PNG's compression: the network is near."""


class PilImage(Protocol):
    """What is asked of PIL.Image.Image."""

    @property
    def mode(self) -> str:
        """How it has its colours."""
        ...

    def getexif(self) -> Any:
        """What the camera has said of it."""
        ...


PictureSource = str | os.PathLike[str] | bytes | bytearray | BinaryIO | PilImage
"""A path, a file's bytes, a file opened to read bytes, or a picture of Pillow's."""


class Picture(NamedTuple):
    """A file's bytes and their media type."""

    body: bytes
    media_type: str


def is_picture(given: object) -> bool:
    """Whether this is one, in any of its forms: a path, a file's bytes, an open file, a PIL image."""
    return (
        isinstance(given, str | os.PathLike | bytes | bytearray) or hasattr(given, "read") or _is_pil(given)
    )


def picture(given: Any) -> Picture:
    """The bytes to send. Raises: BadInput."""
    if isinstance(given, str | os.PathLike):
        where = f"file {os.fspath(given)!r}"
        try:
            with open(given, "rb") as file:
                return _typed(file.read(), where)
        except OSError as error:
            raise BadInput(f"{where} cannot be read: {error.strerror}; expected a JPEG or PNG") from None
    if isinstance(given, bytes | bytearray):
        return _typed(bytes(given), "what was given")
    if _is_pil(given):
        return Picture(_png(given), "image/png")
    content = given.read()
    if not isinstance(content, bytes):
        raise BadInput('the file was opened as text; open it with open(path, "rb")')
    return _typed(content, "the file's rest" if content else "the file, which is at its end,")


def _typed(body: bytes, where: str) -> Picture:
    for start, media_type in _TYPES.items():
        if body.startswith(start):
            return Picture(body, media_type)
    other = next((kind for start, kind in _OTHERS.items() if body.startswith(start)), None)
    what = f"is {other} picture" if other else f"begins with {body[:8]!r}" if body else "is empty"
    raise BadInput(
        f"{where} {what}; expected a JPEG or PNG: convert it, or give an array as client[model](x)"
    )


def _is_pil(given: object) -> bool:
    """Asked without importing Pillow, which a client needs not have."""
    return any(kind.__module__ == "PIL.Image" and kind.__name__ == "Image" for kind in type(given).__mro__)


def _png(image: Any) -> bytes:
    """Every pixel as it is, and the EXIF data by which the server turns the picture upright, as that of its file."""
    if image.mode not in _PNG_MODES:
        image = image.convert("RGB")
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=_FAST, exif=image.getexif())
    return file.getvalue()
