"""The FastCodec of answers that are one tensor's bytes, raw or as a NumPy file: what stands before the numbers, and in
the headers, depends on the rows alone."""

from collections.abc import Callable, Sequence
from typing import Any, Final, final

import numpy as np

from foldserve.service.artifact.signature import ANY, Signature
from foldserve.service.codecs.encoded import LaidOut
from foldserve.service.codecs.fast.codec import Answer, Decoded, FastCodec

_MOST_SHAPES: Final = 64
"""Shapes whose answers are prepared. When they are full, they start anew."""


@final
class TensorBodyCodec(FastCodec):
    """Prepared for one model by of()."""

    @classmethod
    def of(cls, signature: Signature, lay_out: Callable[[np.ndarray], LaidOut]) -> "TensorBodyCodec | None":
        """For a model with one output, all of whose dims but the rows are fixed.

        Args:
            lay_out: what an answer with this output is.
        """
        if len(signature.outputs) > 1 or ANY in signature.outputs[0].row_shape:
            return None
        return cls(lay_out)

    def __init__(self, lay_out: Callable[[np.ndarray], LaidOut]) -> None:
        self._lay_out = lay_out
        self._prepared: dict[tuple[int, ...], Answer] = {}
        """By the output's shape, the answer up to where the numbers begin."""

    def decode(self, body: bytes, options: Sequence[str | None]) -> Decoded | None:
        """See FastCodec: bodies are the protocol's to read."""
        return None

    def encode(self, output: np.ndarray, reply: Any) -> Answer | None:
        """See FastCodec."""
        if reply is not None:
            return None
        prepared = self._prepared.get(output.shape)
        if prepared is None:
            prepared = self._prepare(output)
        media_type, prefix, headers = prepared
        numbers: bytes = output.tobytes()
        return media_type, prefix + numbers if prefix else numbers, headers

    def _prepare(self, output: np.ndarray) -> Answer:
        if len(self._prepared) == _MOST_SHAPES:
            self._prepared.clear()
        laid = self._lay_out(output)
        prepared = self._prepared[output.shape] = (laid.media_type, laid.prefix, laid.headers)
        return prepared
