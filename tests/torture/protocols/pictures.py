"""Pictures as bodies of /predict: PNG, JPEG, and forms with one in it. One row each."""

import io
from dataclasses import replace
from random import Random
from typing import Final

import numpy as np
from PIL import Image

from tests.torture.protocols.predict import accepted, read
from tests.torture.protocols.seam import Asked, Carried, Protocol, Request, queue_headers

_BOUNDARY: Final = "torture"
_BEHIND: Final = 24
"""Bytes at the end of a PNG that are none of its pixels: sums, and the mark of the end."""
_TOKENS: Final = (
    b"\xff\xd8", b"\xff\xd9", b"\xff\xda", b"\xff\xc0", b"\xff\xc2", b"\xff\xe1", b"\xff\xdb", b"\xff\xc4", b"\xff\xfe",
    b"\xff\xee\x00\x0eAdobe", b"Exif\x00\x00", b"II*\x00", b"MM\x00*", b"\x89PNG\r\n\x1a\n", b"IHDR", b"IDAT",
    b"IEND", b"PLTE", b"tRNS", b"acTL", b"fcTL", b"iCCP", b"zTXt", b"eXIf", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\xff", b"\x00\x00\xc3\x50", b"\x00", b"\x01", b"\xff", b"\x10", b"\x08\x06", b"\r\n--torture",
    b"--torture--", b"\r\n\r\n",
)  # fmt: skip


def shows(asked: Asked) -> bool:
    """Whether the model takes pictures."""
    return asked.model == "colours"


def _one_row(asked: Asked) -> bool:
    return shows(asked) and all(len(array) == 1 for array in asked.inputs.values())


def file_of(row: np.ndarray, kind: str) -> bytes:
    """The file of a picture (H, W, 3); of a JPEG the pixels are nearly these."""
    file = io.BytesIO()
    Image.fromarray(row).save(file, kind, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))
    return file.getvalue()


def _request(asked: Asked, chosen: Random, kind: str, body: bytes) -> Request:
    """kind: PNG, JPEG or form."""
    types = {"form": f"multipart/form-data; boundary={_BOUNDARY}"}
    accept = accepted(asked, chosen)
    headers = (f"accept: {accept}",) if accept else ()
    path = f"/predict/{asked.model}"
    media_type = types.get(kind, f"image/{kind.lower()}")
    return Request(asked, kind, body, read, path, media_type, (*headers, *queue_headers(asked)))


def _form(file: bytes) -> bytes:
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    return b"".join((head.encode(), file, f"\r\n--{_BOUNDARY}--\r\n".encode()))


def _write_png(asked: Asked, chosen: Random) -> Request:
    return _request(asked, chosen, "PNG", file_of(asked.inputs["pictures"][0], "PNG"))


def _write_form(asked: Asked, chosen: Random) -> Request:
    return _request(asked, chosen, "form", _form(file_of(asked.inputs["pictures"][0], "PNG")))


def _write_jpeg(asked: Asked, chosen: Random) -> Request:
    """Its right answer is that to the pixels which the file has."""
    file = file_of(asked.inputs["pictures"][0], "JPEG")
    pixels = np.asarray(Image.open(io.BytesIO(file)))
    y = pixels.sum(axis=(0, 1), dtype=np.float32)[None]
    return _request(replace(asked, y=y), chosen, "JPEG", file)


def _spoil_png(asked: Asked, chosen: Random) -> Request:
    whole = _write_png(asked, chosen).body
    return _request(asked, chosen, "PNG", whole[: chosen.randrange(len(whole) - _BEHIND)]).to_be_refused()


def _spoil_jpeg(asked: Asked, chosen: Random) -> Request:
    body = _write_png(asked, chosen).body  # of another type than it says
    if chosen.random() < 0.5:
        whole = _write_jpeg(asked, chosen).body
        body = whole[: chosen.randrange(len(whole) // 2)]
    return _request(asked, chosen, "JPEG", body).to_be_refused()


def _spoil_form(asked: Asked, chosen: Random) -> Request:
    """Cut short, or with two files in it."""
    whole = _write_form(asked, chosen).body
    end = f"--{_BOUNDARY}--\r\n".encode()
    twice = whole.removesuffix(end) + whole
    cut = whole[: chosen.randrange(len(whole) - len(end))]
    return _request(asked, chosen, "form", chosen.choice((twice, cut))).to_be_refused()


PICTURES: Final = (
    Protocol("PNG", Carried.HTTP, _write_png, _spoil_png, _TOKENS, _one_row),
    Protocol("JPEG", Carried.HTTP, _write_jpeg, _spoil_jpeg, _TOKENS, _one_row),
    Protocol("form", Carried.HTTP, _write_form, _spoil_form, _TOKENS, _one_row),
)
