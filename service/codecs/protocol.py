"""What an inference protocol is: how clients send inputs and are answered, whatever carries the bytes.

The seam at which protocols are added. An implementation is one file of protocols/, ordinary Python: what is made of it
for each model (Served, the fast codec) is made once, and the request's life (inference/request.py) asks it for nothing
else. It also works in the codec process, which is given it pickled, where bodies or answers are large.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from foldserve.service.artifact.signature import Signature
from foldserve.service.codecs.encoded import Encoded, LaidOut
from foldserve.service.codecs.json_fast import FastJsonCodec
from foldserve.service.errors import ServiceError

Options = Sequence[str | None]
"""What a request's head says to its protocol, which alone can read it; goes between processes as JSON."""


class Served(NamedTuple):
    """The model version that a request asks."""

    model: str
    version: str
    signature: Signature


class InferenceProtocol(Protocol):
    """One protocol.

    name: its value of the metrics' label `protocol`. media_type: of its answers. large_bytes: bodies of more are not
    parsed on the event loop. raw: whether a body is the rows' own bytes, which need no parsing.
    """

    name: str
    media_type: str
    large_bytes: int
    raw: bool

    def parse(
        self, body: bytes | bytearray | memoryview, signature: Signature, options: Options
    ) -> dict[str, np.ndarray]:
        """Input name -> array, of the signature's datatypes; possibly views of the body. Raises: ServiceError."""
        ...

    def render(self, served: Served, outputs: Mapping[str, np.ndarray]) -> Encoded:
        """The answer with these outputs. Raises: ServiceError."""
        ...

    def lay_out(self, served: Served, outputs: Mapping[str, np.ndarray]) -> LaidOut | None:
        """The same, with the numbers where they lie; None when this protocol must write them anew."""
        ...

    def render_error(self, error: ServiceError) -> Encoded:
        """The response for an error."""
        ...

    def fast_codec(self, served: Served) -> FastJsonCodec | None:
        """What reads and writes the common bodies of this model more quickly; None when there is no such thing."""
        ...
