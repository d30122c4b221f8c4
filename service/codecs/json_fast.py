"""The FastCodec of the most common JSON: one input of floats as {"inputs": [[...]]}, one output.

json_codec looks at what is not taken here.
"""

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain
from math import isfinite, prod
from typing import Any, Final

import numpy as np
import orjson

from foldserve.service.artifact.signature import ANY, Signature, TensorSpec
from foldserve.service.codecs.fast_codec import Answer, Decoded, FastCodec

_JSON: Final = "application/json"
_NUMPY: Final = orjson.OPT_SERIALIZE_NUMPY
_FEW: Final = 512
"""Numbers up to which struct is quicker than numpy, whose calls have a fixed cost."""


class FastJsonCodec(FastCodec):
    """Prepared for one model by of()."""

    @classmethod
    def of(cls, model: str, version: str, signature: Signature) -> "FastJsonCodec | None":
        """For a model with one input of floats, all of whose dims but the rows are fixed, and one output."""
        first = signature.inputs[0]
        if not signature.counts_rows:
            return None
        if len(signature.inputs) > 1 or first.dtype.kind != "f" or ANY in first.row_shape:
            return None
        if len(signature.outputs) > 1 or ANY in signature.outputs[0].row_shape:
            return None
        names = (model, version, signature.outputs[0].name)
        return cls(first, b'{"model":%b,"version":%b,"outputs":{%b:' % tuple(map(orjson.dumps, names)))

    def __init__(self, spec: TensorSpec, prefix: bytes) -> None:
        self._dtype = spec.dtype
        self._row_shape = spec.row_shape
        self._row_size = prod(spec.row_shape)
        self._rank = len(spec.shape)
        self._prefix = prefix
        packer = lru_cache(maxsize=64)(self._packer)
        self._packer_of: Callable[[int], Callable[..., bytes]] = packer

    def decode(self, body: bytes, options: Sequence[str | None]) -> Decoded | None:
        """See FastCodec."""
        if options:
            return None
        text = body
        # Two quotes are those of "inputs"; without an "l" or an "r" no leaf is false, null or true. So all
        # leaves are numbers, and nothing can turn one kind of value into another. None is infinite: orjson
        # refuses them.
        if text.count(b'"') != 2 or b"l" in text or b"r" in text:
            return None
        try:
            rows = orjson.loads(text)["inputs"]
            count = len(rows)
            if self._rank == 2 and count * self._row_size <= _FEW:
                # A number beyond the datatype's range is an OverflowError here, a list among them a struct.error.
                if count == 1:
                    return 1, self._packer_of(1)(*rows[0]), None, None
                if count and all(len(row) == self._row_size for row in rows):
                    return count, self._packer_of(count)(*chain.from_iterable(rows)), None, None
                return None
            with np.errstate(over="ignore", invalid="ignore"):
                array = np.array(rows, self._dtype)
                finite = isfinite(array.sum())
        except (ValueError, KeyError, TypeError, OverflowError, struct.error):
            return None
        if array.ndim != self._rank or array.shape[1:] != self._row_shape or not array.size or not finite:
            return None
        return count, array.reshape(-1).view(np.uint8).data, None, None

    def encode(self, output: np.ndarray, reply: Any) -> Answer | None:
        """See FastCodec. reply: what PredictProtocol has beside the outputs."""
        if reply is not None:
            return None
        numbers = orjson.dumps(output, option=_NUMPY)
        if b"null" in numbers:
            return None
        return _JSON, b"%b%b}}" % (self._prefix, numbers), ()

    def _packer(self, rows: int) -> Callable[..., Any]:
        """Makes bytes of the numbers of so many rows."""
        return struct.Struct(f"<{rows * self._row_size}{self._dtype.char}").pack
