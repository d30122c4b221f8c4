"""The FastCodec of Open Inference Protocol requests that differ in their tensor data alone.

A client's requests have the same JSON around the numbers, whether those follow as bytes or stand in it as "data", but
for the id of a client that gives one. What the protocol found in JSON that came twice (RepeatCache) is kept by its
bytes, without the id, and equal bytes are not parsed again.
"""

import re
import struct
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any, Final, final

import numpy as np
import orjson

from foldserve.service.artifact.signature import ANY, Signature, TensorSpec
from foldserve.service.codecs.fast.codec import Answer, Decoded, FastCodec, Schedule
from foldserve.service.codecs.fast.packer import FEW, Packer
from foldserve.service.codecs.fast.repeat_cache import RepeatCache

JSON_LENGTH: Final = "Inference-Header-Content-Length"
JSON: Final = "application/json"
BINARY: Final = "application/octet-stream"
_NUMPY: Final = orjson.OPT_SERIALIZE_NUMPY
_MOST_KEPT: Final = 256
_LARGEST_KEPT: Final = 2048
"""Bytes of JSON around the numbers."""
_LARGEST_ENVELOPE: Final = _LARGEST_KEPT + 256
"""With the id before it: a longer one is not kept, and must not be copied and looked up."""
_KEY: Final = b'"data"'
_DATA: Final = b'"data":'
_KEY_SEPARATOR: Final = b"\x00"
"""Between what stands before and after the numbers, in a key."""
_ID_KEY: Final = b'"id"'
_ID_FIRST: Final = re.compile(
    rb'\{[ \t\n\r]?"id"[ \t\n\r]?:[ \t\n\r]?"([ !#-\[\]-~]{1,128})"[ \t\n\r]?,[ \t\n\r]?'
)
"""An id as clients write it: before everything else, with JSON's white space, which is less than \\s."""


class CachedEnvelope:
    """What the JSON around the numbers says, but for the id."""

    def __init__(self, rows: int, reply: Any, schedule: Schedule | None) -> None:
        _, binary, choices, _ = reply
        self.rows = rows
        self.schedule = schedule
        self._without_id: tuple[Any, ...] = (None, binary, choices, {})

    def reply_to(self, identity: str | None) -> Any:
        """What the answer to a request with this id needs; None for none."""
        return self._without_id if identity is None else (identity, *self._without_id[1:])


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
        self._begin = orjson.dumps({"model_name": model, "model_version": version})[:-1]
        self._binary: RepeatCache[CachedEnvelope] = RepeatCache(_MOST_KEPT, _LARGEST_KEPT)
        self._json: RepeatCache[CachedEnvelope] = RepeatCache(_MOST_KEPT, _LARGEST_KEPT)
        self._packer = Packer(given.dtype)
        document = lru_cache(maxsize=64)(self._document)
        self._document_of = document

    def decode(self, body: bytes, options: Sequence[str | None]) -> Decoded | None:
        """See FastCodec."""
        if options:
            end = self.envelope_bytes(options)
            read = self.read_envelope(body[:end], len(body) - end) if end else None
            return None if read is None else (read[0], body[end:], read[1], read[2])
        start, end = _numbers_in(body)
        if start < 0:
            return None
        before, identity = _without_id(body[:start])
        known = self._json.kept.get(b"%b%b%b" % (before, _KEY_SEPARATOR, body[end:]))
        if known is None:
            return None
        data = self._bytes_of(body[start:end], known.rows)
        return None if data is None else (known.rows, data, known.reply_to(identity), known.schedule)

    def learn(
        self,
        body: bytes,
        options: Sequence[str | None],
        inputs: dict[str, np.ndarray],
        reply: Any,
        schedule: Schedule | None,
    ) -> None:
        """See FastCodec."""
        rows = len(inputs[self._input])
        if options:
            end = self.envelope_bytes(options)
            self.learn_envelope(body[:end], len(body) - end, rows, reply, schedule)
            return
        start, end = _numbers_in(body)
        if start < 0 or not self._takes_json:
            return
        before, identity = _without_id(body[:start])
        after = body[end:]
        # Make sure that "data" is the tensor's own key.
        certain = body.count(_KEY) == 1 and b"\\" not in before and b"\\" not in after
        if certain and reply[0] == identity and _ID_KEY not in before and _ID_KEY not in after:
            self._json.add(b"%b%b%b" % (before, _KEY_SEPARATOR, after), CachedEnvelope(rows, reply, schedule))

    def envelope_bytes(self, options: Sequence[str | None]) -> int:
        """See FastCodec."""
        nbytes = int(options[0] or 0) if options else 0
        return nbytes if nbytes <= _LARGEST_ENVELOPE else 0

    def read_envelope(self, envelope: bytes, tensor_bytes: int) -> tuple[int, Any, Schedule | None] | None:
        """See FastCodec."""
        text, identity = _without_id(envelope)
        known = self._binary.kept.get(text)
        if known is None or tensor_bytes != known.rows * self._row_bytes:
            return None
        return known.rows, known.reply_to(identity), known.schedule

    def learn_envelope(
        self, envelope: bytes, tensor_bytes: int, rows: int, reply: Any, schedule: Schedule | None
    ) -> None:
        """See FastCodec."""
        text, identity = _without_id(envelope)
        if reply[3]:
            return  # outputs that go into shared memory, where a client may want others next time
        # A second "id" would be the one that counts, written plainly or with an escape.
        certain = reply[0] == identity and _ID_KEY not in text and b"\\" not in text
        if certain and text and tensor_bytes == rows * self._row_bytes:
            self._binary.add(text, CachedEnvelope(rows, reply, schedule))

    def encode(self, output: np.ndarray, reply: Any) -> Answer | None:
        """See FastCodec."""
        identity, all_binary, choices, places = reply
        if places:
            return None
        binary = all_binary
        if choices:
            binary, classes = choices[self._output.name]
            if classes:
                return None
        document, headers = self._document_of(len(output), binary)
        if identity is not None:
            document = b'%b,"id":%b%b' % (self._begin, orjson.dumps(identity), document[len(self._begin) :])
            headers = ((JSON_LENGTH, str(len(document))),)
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
            if count <= FEW and len(values) == count:
                # A number beyond the datatype's range is an OverflowError here, a list among them a struct.error.
                packed: bytes = self._packer.of(count)(*values)
                return packed
            with np.errstate(over="raise"):
                array = np.array(values, self._dtype)
        except (ValueError, TypeError, ArithmeticError, struct.error):
            return None
        if array.shape != (count,) and array.shape != (rows, *self._row_shape):
            return None
        return array.reshape(-1).view(np.uint8).data

    def _document(self, rows: int, binary: bool) -> tuple[bytes, tuple[tuple[str, str], ...]]:
        """The JSON of an answer of so many rows, and the headers; whole where its numbers follow as bytes, else up to
        where they stand in it."""
        spec = self._output
        shape = [rows, *spec.row_shape]
        output: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": shape}
        if binary:
            output["parameters"] = {"binary_data_size": prod(shape) * spec.dtype.itemsize}
        text = self._begin + b',"outputs":' + orjson.dumps([output]) + b"}"
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


def _without_id(text: bytes) -> tuple[bytes, str | None]:
    """A request's JSON, or its beginning, without the id that stands first in it; and that id, None where none does."""
    found = _ID_FIRST.match(text)
    return (text, None) if found is None else (b"{" + text[found.end() :], found[1].decode())
