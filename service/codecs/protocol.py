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


class SharedRegions(Protocol):
    """The shared memory that clients on this host have registered, as one process reaches it.

    at_once_bytes: what may be copied where others wait for it. Methods raise BadRequest; where: who needs the bytes.
    """

    at_once_bytes: int

    def check(self, name: str, offset: int, nbytes: int, where: str) -> int:
        """The number of the registration that has these bytes. Raises also: TooLarge."""
        ...

    def read(self, name: str, offset: int, nbytes: int, where: str) -> bytearray:
        """A copy of these bytes, which were checked."""
        ...

    def write(self, name: str, number: int, offset: int, data: memoryview, where: str) -> None:
        """Write there, if that is the registration that was checked."""
        ...


class TakesLong(Exception):
    """A body that was to be parsed on an event loop, and is not, for it names what takes long: the codec process does
    it. Raised before anything was done."""


class Served(NamedTuple):
    """The model version that a request asks.

    labels: names of the classes, in the order of the output's columns. image: how a picture becomes its input, where it
    takes pictures. regions: None where the server reads no shared memory of clients.
    """

    model: str
    version: str
    signature: Signature
    labels: tuple[str, ...] = ()
    image: PictureInput | None = None
    regions: SharedRegions | None = None


class ParsedRequest(NamedTuple):
    """What a body says.

    inputs: input name -> array, of the signature's datatypes; possibly views of the body. outputs: those to answer
    with, in this order; none for all in the model's. reply: what render() is to be given back; JSON values.
    repeats: whether a body that differs from it in its numbers alone says the same.
    """

    inputs: dict[str, np.ndarray]
    outputs: tuple[str, ...] = ()
    reply: Any = None
    schedule: Schedule = NO_SCHEDULE
    repeats: bool = True


class InferenceProtocol(Protocol):
    """One protocol.

    key: its own among all of them. name: its value of the metrics' label `protocol`. media_type: of its answers that
    say no other. is_json: bodies are all text, and bounded as such. large_bytes: bodies of more are not parsed on the
    event loop. raw: whether a body is the rows' own bytes, which need no parsing. at_once_bytes: outputs of no more are
    rendered on the event loop, whatever is asked; of others render_ns() tells. shorter: what a client can do whose body
    is too long, for the error.
    """

    key: str
    name: str
    media_type: str
    is_json: bool
    large_bytes: int
    raw: bool
    at_once_bytes: int
    shorter: str

    def parse(self, body: bytes | bytearray | memoryview, served: Served, options: Options) -> ParsedRequest:
        """What the body says to this model version. Raises: ServiceError; on an event loop also TakesLong."""
        ...

    def render(self, served: Served, outputs: Mapping[str, np.ndarray], reply: Any) -> Encoded:
        """The answer with these outputs. reply: ParsedRequest.reply. Raises: ServiceError."""
        ...

    def render_ns(self, served: Served, outputs: Mapping[str, np.ndarray], reply: Any) -> int:
        """About how long that takes, in nanoseconds: see engine/codec_process/rendering_time.py."""
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
