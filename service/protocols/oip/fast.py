"""The FastCodec of Open Inference Protocol requests that differ in their tensor data alone.

A client's requests have the same JSON around the numbers, whether those follow as bytes or stand in it as "data". What
the protocol found in JSON that came twice (RepeatCache) is kept by its bytes, and equal bytes are not parsed again.
"""

import struct
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any, Final, final

import numpy as np
import orjson

from foldserve.service.artifact.signature import ANY, Signature, TensorSpec
from foldserve.service.codecs.fast_codec import Answer, Decoded, FastCodec
from foldserve.service.codecs.repeat_cache import RepeatCache

JSON_LENGTH: Final = "Inference-Header-Content-Length"
JSON: Final = "application/json"
BINARY: Final = "application/octet-stream"
_NUMPY: Final = orjson.OPT_SERIALIZE_NUMPY
_FEW: Final = 512
"""Numbers up to which struct is quicker than numpy, whose calls have a fixed cost."""
_MOST_KEPT: Final = 256
_LARGEST_KEPT: Final = 2048
"""Bytes of JSON around the numbers."""
_KEY: Final = b'"data"'
_DATA: Final = b'"data":'
_KEY_SEPARATOR: Final = b"\x00"
"""Between what stands before and after the numbers, in a key."""


class CachedEnvelope:
    """What the JSON around the numbers says."""

    def __init__(self, rows: int, reply: Any) -> None:
        self.rows = rows
        self.reply = reply


@final
class OipFastCodec(FastCodec):
    """Prepared for one model by of()."""

    @classmethod
    def of(cls, model: str, version: str, signature: Signature) -> "OipFastCodec | None":
        """For a model with one input and one output of numbers, all of whose dims but the rows are fixed."""
        if not signature.counts_rows or len(signature.inputs) > 1 or len(signature.outputs) > 1:
            return None
        given, made = signature.inputs[0], signature.outputs[0]
        if given.dtype.kind == "b" or made.dtype.kind == "b":
            return None
        if ANY in given.row_shape or ANY in made.row_shape:
            return None
        return cls(model, version, given, made)

    def __init__(self, model: str, version: str, given: TensorSpec, made: TensorSpec) -> None:
        self._row_shape = given.row_shape
        self._row_size = prod(given.row_shape)
        self._row_bytes = self._row_size * given.dtype.itemsize
        self._dtype = given.dtype
        self._takes_json = given.dtype.kind == "f"
        self._input = given.name
        self._output = made
        self._names = (model, version)
        self._binary: RepeatCache[CachedEnvelope] = RepeatCache(_MOST_KEPT, _LARGEST_KEPT)
        self._json: RepeatCache[CachedEnvelope] = RepeatCache(_MOST_KEPT, _LARGEST_KEPT)
        packer = lru_cache(maxsize=64)(self._packer)
        self._packer_of = packer
        document = lru_cache(maxsize=64)(self._document)
        self._document_of = document

    def decode(self, body: bytes, options: Sequence[str | None]) -> Decoded | None:
        """See FastCodec."""
        if options:
            end = int(options[0] or 0)
            known = self._binary.kept.get(body[:end])
            if known is None or len(body) - end != known.rows * self._row_bytes:
                return None
            return known.rows, body[end:], known.reply
        start, end = _numbers_in(body)
        if start < 0:
            return None
        known = self._json.kept.get(b"%b%b%b" % (body[:start], _KEY_SEPARATOR, body[end:]))
        if known is None:
            return None
        data = self._bytes_of(body[start:end], known.rows)
        return None if data is None else (known.rows, data, known.reply)

    def learn(
        self, body: bytes, options: Sequence[str | None], inputs: dict[str, np.ndarray], reply: Any
    ) -> None:
        """See FastCodec."""
        if reply[0] is not None:
            return  # an id, which will be another one next time
        known = CachedEnvelope(len(inputs[self._input]), reply)
        if options:
            end = int(options[0] or 0)
            if end and len(body) - end == known.rows * self._row_bytes:
                self._binary.add(body[:end], known)
            return
        start, end = _numbers_in(body)
        if start < 0 or not self._takes_json:
            return
        before, after = body[:start], body[end:]
        # Make sure that "data" is the tensor's own key.
        if body.count(_KEY) == 1 and b"\\" not in before and b"\\" not in after:
            self._json.add(b"%b%b%b" % (before, _KEY_SEPARATOR, after), known)

    def encode(self, output: np.ndarray, reply: Any) -> Answer | None:
        """See FastCodec."""
        identity, all_binary, choices, places = reply
        if identity is not None or places:
            return None
        binary = all_binary
        if choices:
            binary, classes = choices[self._output.name]
            if classes:
                return None
        document, headers = self._document_of(len(output), binary)
        if binary:
            return BINARY, document + output.tobytes(), headers
        numbers = orjson.dumps(output.reshape(-1), option=_NUMPY)
        if b"null" in numbers:
            return None
        return JSON, b"%b%b}]}" % (document, numbers), ()

    def _bytes_of(self, text: bytes, rows: int) -> bytes | memoryview | None:
        """A list of numbers, flat or nested, in the input's datatype; None when the protocol must look."""
        # Without an "l" or an "r" nothing in it is false, null or true; quotes and braces are not in it.
        if b"l" in text or b"r" in text:
            return None
        count = rows * self._row_size
        try:
            values = orjson.loads(text)
            if count <= _FEW and len(values) == count:
                # A number beyond the datatype's range is an OverflowError here, a list among them a struct.error.
                packed: bytes = self._packer_of(count)(*values)
                return packed
            with np.errstate(over="raise"):
                array = np.array(values, self._dtype)
        except (ValueError, TypeError, ArithmeticError, struct.error):
            return None
        if array.shape != (count,) and array.shape != (rows, *self._row_shape):
            return None
        return array.reshape(-1).view(np.uint8).data

    def _packer(self, count: int) -> Any:
        """Makes bytes of so many numbers."""
        return struct.Struct(f"<{count}{self._dtype.char}").pack

    def _document(self, rows: int, binary: bool) -> tuple[bytes, tuple[tuple[str, str], ...]]:
        """The JSON of an answer of so many rows, and the headers; whole where its numbers follow as bytes, else up to
        where they stand in it."""
        spec = self._output
        shape = [rows, *spec.row_shape]
        output: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": shape}
        if binary:
            output["parameters"] = {"binary_data_size": prod(shape) * spec.dtype.itemsize}
        model, version = self._names
        text = orjson.dumps({"model_name": model, "model_version": version, "outputs": [output]})
        if binary:
            return text, ((JSON_LENGTH, str(len(text))),)
        return text[: -len(b"}]}")] + b',"data":', ()


def _numbers_in(body: bytes) -> tuple[int, int]:
    """Where what follows the first "data" begins, and where it can be no list of numbers any more; -1 without one."""
    at = body.find(_DATA)
    if at < 0:
        return -1, -1
    start = at + len(_DATA)
    end = body.find(b"}", start)
    if end < 0:
        return -1, -1
    other = body.find(b'"', start, end)
    if other >= 0:
        end = other
    # Without what lies between the list and the next token.
    return start, body.rfind(b"]", start, end) + 1
