"""The quick way through the most common JSON: one input of floats as {"inputs": [[...]]}, one output of floats.

Takes only what is certain to be right and returns None for anything else: json_codec then decides, and says what
is wrong. A test holds that whatever is taken here comes out of json_codec equal.
"""

import math
from typing import Final

import numpy as np
import orjson

from service.signature import ANY, Signature, TensorSpec

_NUMPY: Final = orjson.OPT_SERIALIZE_NUMPY


class QuickJson:
    """Prepared for one model by of()."""

    @classmethod
    def of(cls, model: str, version: str, signature: Signature) -> "QuickJson | None":
        """For a model with one input of floats, all of whose dims but the rows are fixed, and one output."""
        first = signature.inputs[0]
        if len(signature.inputs) > 1 or first.dtype.kind != "f" or ANY in first.row_shape:
            return None
        if len(signature.outputs) > 1 or ANY in signature.outputs[0].row_shape:
            return None
        names = (model, version, signature.outputs[0].name)
        return cls(first, b'{"model":%b,"version":%b,"outputs":{%b:' % tuple(map(orjson.dumps, names)))

    def __init__(self, spec: TensorSpec, prefix: bytes) -> None:
        self._dtype = spec.dtype
        self._row_shape = spec.row_shape
        self._rank = len(spec.shape)
        self._prefix = prefix

    def decode(self, text: bytes) -> np.ndarray | None:
        """The input, C-contiguous; None when json_codec must look."""
        # Two quotes are those of "inputs"; without an "l" or an "r" no leaf is false, null or true. So all
        # leaves are numbers, and numpy cannot turn one kind of value into another.
        if text.count(b'"') != 2 or b"l" in text or b"r" in text:
            return None
        try:
            document = orjson.loads(text)
            array = np.array(document["inputs"], self._dtype)
        except (ValueError, KeyError, TypeError, OverflowError):
            return None
        if (
            array.ndim != self._rank
            or array.shape[1:] != self._row_shape
            or not array.size
            or not math.isfinite(array.sum())
        ):
            return None
        return array

    def encode(self, output: np.ndarray) -> bytes | None:
        """The answer; None when json_codec must look: a value that JSON cannot carry."""
        numbers = orjson.dumps(output, option=_NUMPY)
        if b"null" in numbers:
            return None
        return b"%b%b}}" % (self._prefix, numbers)
