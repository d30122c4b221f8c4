"""Pictures as bodies of /predict: image/jpeg, image/png, or a form with one such file, for models that take pictures.

What a picture becomes is declared in the manifest, and done by artifact/pictures.py, which the export has proved. It
happens in the codec process: an event loop would stand still meanwhile.
"""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from foldserve.service.artifact.pictures import FORMATS, PictureInput, decode, decode_all
from foldserve.service.codecs.encoded import Encoded, LaidOut
from foldserve.service.codecs.fast.codec import FastCodec
from foldserve.service.codecs.protocol import InferenceProtocol, Options, ParsedRequest, Served
from foldserve.service.errors import BadPicture, BadRequest, BadTensor, ServiceError, UnsupportedMediaType
from foldserve.service.protocols.top import check_count

PICTURE_TYPES: Final = {"image/jpeg": "JPEG", "image/png": "PNG"}
FORM: Final = "multipart/form-data"
B64: Final = "b64"
_BOUNDARY: Final = re.compile(
    r';[ \t]*boundary=(?:"([^"]{1,70})"|([^";,\s]{1,70}))', re.ASCII | re.IGNORECASE
)


class PictureProtocol:
    """Implements InferenceProtocol. answers: the protocol of their answers, which holds for errors too."""

    key = name = "picture"
    is_json = False
    large_bytes = 0
    raw = False
    shorter = "send a smaller picture"

    def __init__(self, answers: InferenceProtocol) -> None:
        self._answers = answers
        self.media_type = answers.media_type
        self.at_once_bytes = answers.at_once_bytes

    def parse(self, body: bytes | bytearray | memoryview, served: Served, options: Options) -> ParsedRequest:
        """See InferenceProtocol. options: those of picture_options(), and how many of the largest scores are asked
        for."""
        *said, top = options
        image = served.image
        assert image is not None  # as picture_options() has seen
        row = decode_body(bytes(body), said, image)
        if top is not None:
            check_count(1, int(top))
        return ParsedRequest({image.input: row[None]}, reply=None if top is None else int(top))

    def render(self, served: Served, outputs: Mapping[str, np.ndarray], reply: Any) -> Encoded:
        """See InferenceProtocol."""
        return self._answers.render(served, outputs, reply)

    def render_ns(self, served: Served, outputs: Mapping[str, np.ndarray], reply: Any) -> int:
        """See InferenceProtocol."""
        return self._answers.render_ns(served, outputs, reply)

    def lay_out(self, served: Served, outputs: Mapping[str, np.ndarray], reply: Any) -> LaidOut | None:
        """See InferenceProtocol."""
        return self._answers.lay_out(served, outputs, reply)

    def render_error(self, error: ServiceError) -> Encoded:
        """See InferenceProtocol."""
        return self._answers.render_error(error)

    def fast_codec(self, served: Served) -> FastCodec | None:
        """See InferenceProtocol."""
        return None


def is_picture(content_type: str | None) -> bool:
    """Whether a body of that type is a picture, also where it is one that cannot be read here."""
    media_type = _media_type(content_type)
    return media_type.startswith("image/") or media_type == FORM


def picture_options(content_type: str, served: Served) -> tuple[str | None, str | None]:
    """What such a Content-Type says: the format, or the boundary of a form.

    Raises: BadRequest, UnsupportedMediaType; also for a model that does not take pictures.
    """
    media_type = _media_type(content_type)
    if media_type != FORM and media_type not in PICTURE_TYPES:
        raise UnsupportedMediaType(
            f"Content-Type {media_type[:100]!r} is not supported; expected {' or '.join(PICTURE_TYPES)}: convert the "
            "picture, or name its type as it is"
        )
    if served.image is None:
        raise UnsupportedMediaType(takes_none(served.model, f"Content-Type is {media_type}"))
    if len(served.signature.inputs) > 1:
        names = ", ".join(served.signature.inputs_by_name)
        raise UnsupportedMediaType(
            f"model {served.model!r} has the inputs {names} and a picture is one of them; send them all as JSON, or "
            f'the picture as {{"{B64}": ...}} to /v1/models/{served.model}:predict'
        )
    if media_type != FORM:
        return PICTURE_TYPES[media_type], None
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise BadRequest(
            f"Content-Type is {content_type[:200]!r}; expected the boundary that stands between the parts of the form: "
            "let the client write this header itself, as curl -F does"
        )
    return None, found[1] or found[2]


def takes_none(model: str, given: str) -> str:
    """What to tell who sends a picture to a model that takes none."""
    return (
        f"model {model!r} does not say how it takes pictures, and {given}; export the network with an ImageInput "
        "around it, or send the array that it takes, as application/x-npy to /predict for example"
    )


def decode_body(body: bytes, options: Options, image: PictureInput) -> np.ndarray:
    """The row that a body is. options: those of picture_options(). Raises: BadPicture, BadRequest."""
    kind, boundary = options
    if boundary is not None:
        return decode(only_part(body, boundary), image, FORMATS)
    return decode(body, image, (kind or "",))


def only_part(body: bytes, boundary: str) -> bytes:
    """What the only part of a form holds (RFC 2046, 5.1.1). Raises: BadRequest."""
    expected = "expected a form with one file in it, as curl -F 'file=@cat.jpg' sends it"
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("latin-1"), 3)[1:]
    ends = next((at for at, piece in enumerate(pieces) if piece.startswith(b"--")), None)
    if ends is None and len(pieces) < 3:
        raise BadRequest(f"the form ends before its last boundary; {expected}, whole")
    if ends != 1:
        raise BadRequest(
            f"the form has {'no field' if ends == 0 else 'several fields'}; {expected}, and nothing else"
        )
    _, gap, content = pieces[0].partition(b"\r\n\r\n")
    if not gap:
        raise BadRequest(f"the form's field has no empty line behind its headers; {expected}")
    return content


def has_pictures(values: Any) -> bool:
    """Whether JSON rows of an input are pictures: {"b64": "..."} each."""
    return isinstance(values, list) and any(isinstance(row, dict) and B64 in row for row in values)


def decode_rows(rows: Sequence[Any], image: PictureInput) -> np.ndarray:
    """The input that these rows are. Raises: BadPicture, BadTensor."""
    arrays = decode_all([_from_base64(at, row) for at, row in enumerate(rows)], image)
    sizes = {array.shape for array in arrays}
    if len(sizes) > 1:
        shown = ", ".join(sorted(map(str, map(list, sizes)))[:3])
        raise BadTensor(
            f"the pictures become rows of different shapes ({shown}); expected rows of one shape: send pictures of one "
            "size together"
        )
    return np.stack(arrays)


def _from_base64(at: int, row: Any) -> bytes:
    if not isinstance(row, dict) or set(row) != {B64} or not isinstance(row[B64], str):
        raise BadPicture(
            f'picture {at}: expected {{"{B64}": "..."}} with the bytes of a JPEG or PNG as base64'
        )
    try:
        return base64.b64decode(row[B64], validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadPicture(
            f"picture {at} is not base64 ({error}); expected letters, digits, + and /, padded with =: RFC 4648, 4"
        ) from None


def _media_type(content_type: str | None) -> str:
    return (content_type or "").partition(";")[0].strip().lower()
