"""What an inference protocol is: how clients send inputs and are answered, whatever carries the bytes.

The seam at which protocols are added. An implementation is one file of protocols/, ordinary Python: what is made of it
for each model (Served, the fast codec) is made once, and the request's life (inference/request.py) asks it for nothing
else. It also works in the codec process, which is given it pickled, where bodies or answers are large.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from foldserve.service.artifact.pictures import PictureInput
from foldserve.service.artifact.signature import Signature
from foldserve.service.codecs.encoded import Encoded, LaidOut
from foldserve.service.codecs.fast.codec import NO_SCHEDULE, FastCodec, Schedule
from foldserve.service.errors import ServiceError

Options = Sequence[str | None]
"""What a request's head says to its protocol, which alone can read it; goes between processes as JSON."""


class Served(NamedTuple):
    """The model version that a request asks.

    labels: names of the classes, in the order of the output's columns. image: how a picture becomes its input, where it
    takes pictures.
    """

    model: str
    version: str
    signature: Signature
    labels: tuple[str, ...] = ()
    image: PictureInput | None = None


class ParsedRequest(NamedTuple):
    """What a body says.

    inputs: input name -> array, of the signature's datatypes; possibly views of the body. outputs: those to answer
    with, in this order; none for all in the model's. reply: what render() is to be given back; JSON values.
    """

    inputs: dict[str, np.ndarray]
    outputs: tuple[str, ...] = ()
    reply: Any = None
    schedule: Schedule = NO_SCHEDULE


class InferenceProtocol(Protocol):
    """One protocol.

    key: its own among all of them. name: its value of the metrics' label `protocol`. media_type: of its answers that
    say no other. is_json: bodies are all text, and bounded as such. large_bytes: bodies of more are not parsed on the
    event loop. raw: whether a body is the rows' own bytes, which need no parsing.
    """

    key: str
    name: str
    media_type: str
    is_json: bool
    large_bytes: int
    raw: bool

    def parse(self, body: bytes | bytearray | memoryview, served: Served, options: Options) -> ParsedRequest:
        """What the body says to this model version. Raises: ServiceError."""
        ...

    def render(self, served: Served, outputs: Mapping[str, np.ndarray], reply: Any) -> Encoded:
        """The answer with these outputs. reply: ParsedRequest.reply. Raises: ServiceError."""
        ...

    def lay_out(self, served: Served, outputs: Mapping[str, np.ndarray], reply: Any) -> LaidOut | None:
        """The same, with the numbers where they lie; None when this protocol must write them anew."""
        ...

    def render_error(self, error: ServiceError) -> Encoded:
        """The response for an error."""
        ...

    def fast_codec(self, served: Served) -> FastCodec | None:
        """What reads and writes the common bodies of this model more quickly; None when there is no such thing."""
        ...
