"""The FastCodec of the most common JSON: one input of floats as {"inputs": [[...]]}, one output.

Whether the key is "inputs" or another, and what stands around the numbers of the answer, is the protocol's. What is not
taken here it looks at itself.
"""

import struct
from collections.abc import Sequence
from itertools import chain
from math import isfinite, prod
from typing import Any, Final, final

import numpy as np
import orjson

from foldserve.service.artifact.signature import ANY, Signature, TensorSpec
from foldserve.service.codecs.fast.codec import Answer, Decoded, FastCodec
from foldserve.service.codecs.fast.packer import FEW, Packer

_JSON: Final = "application/json"
_NUMPY: Final = orjson.OPT_SERIALIZE_NUMPY


@final
class JsonRowsCodec(FastCodec):
    """Prepared for one model by of()."""

    @classmethod
    def of(
        cls, signature: Signature, key: str, answer: tuple[bytes, bytes], reply: Any = None
    ) -> "JsonRowsCodec | None":
        """For a model with one input of floats, all of whose dims but the rows are fixed, and one output.

        Args:
            key: of the rows, in the body.
            answer: what stands before and after the numbers of the output.
            reply: what the protocol's parse() says to render() of such a body.
        """
        first = signature.inputs[0]
        if not signature.counts_rows:
            return None
        if len(signature.inputs) > 1 or first.dtype.kind != "f" or ANY in first.row_shape:
            return None
        if len(signature.outputs) > 1 or ANY in signature.outputs[0].row_shape:
            return None
        return cls(first, key, answer, reply)

    def __init__(self, spec: TensorSpec, key: str, answer: tuple[bytes, bytes], reply: Any) -> None:
        self._dtype = spec.dtype
        self._row_shape = spec.row_shape
        self._row_size = prod(spec.row_shape)
        self._rank = len(spec.shape)
        self._key = key
        self._before, self._after = answer
        self._reply = reply
        self._packer = Packer(spec.dtype)

    def decode(self, body: bytes, options: Sequence[str | None]) -> Decoded | None:
        """See FastCodec."""
        if options:
            return None
        text = body
        # Two quotes are those of the key; without an "l" or an "r" after it no leaf is false, null or true. So all
        # leaves are numbers, and nothing can turn one kind of value into another. None is infinite: orjson
        # refuses them.
        if text.count(b'"') != 2 or b"l" in text or b"r" in text:
            return None
        try:
            rows = orjson.loads(text)[self._key]
            count = len(rows)
            if self._rank == 2 and count * self._row_size <= FEW:
                # A number beyond the datatype's range is an OverflowError here, a list among them a struct.error.
                if count == 1:
                    return 1, self._packer.of(self._row_size)(*rows[0]), self._reply, None
                if count and all(len(row) == self._row_size for row in rows):
                    pack = self._packer.of(count * self._row_size)
                    return count, pack(*chain.from_iterable(rows)), self._reply, None
                return None
            with np.errstate(over="ignore", invalid="ignore"):
                array = np.array(rows, self._dtype)
                finite = isfinite(array.sum())
        except (ValueError, KeyError, TypeError, OverflowError, struct.error):
            return None
        if array.ndim != self._rank or array.shape[1:] != self._row_shape or not array.size or not finite:
            return None
        return count, array.reshape(-1).view(np.uint8).data, self._reply, None

    def encode(self, output: np.ndarray, reply: Any) -> Answer | None:
        """See FastCodec."""
        if reply != self._reply:
            return None
        numbers = orjson.dumps(output, option=_NUMPY)
        if b"null" in numbers:
            return None
        return _JSON, b"%b%b%b" % (self._before, numbers, self._after), ()
