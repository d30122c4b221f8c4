"""Mutated bodies and headers into the codecs, in this process: a tensor that numpy reads too, or a text for the client.

Whatever a codec accepts is compared with what the standard library and numpy make of the same bytes, bit for bit.
Whatever it refuses is refused with a ServiceError of bounded length, and neither takes long: CPU time, so that a busy
machine changes nothing.
"""

import io
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

import numpy as np

from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.codecs import json_codec, npy_codec, raw_codec
from foldserve.service.codecs.fast.json_rows import JsonRowsCodec
from foldserve.service.codecs.raw_codec import TensorHeaders
from foldserve.service.errors import ServiceError
from tests.torture.counts import Counts
from tests.torture.mutations import mutated
from tests.torture.protocols.predict import JSON_TOKENS, NPY_TOKENS, RAW_TOKENS

CPU_LIMIT_S: Final = 0.1
"""Of CPU for one body of at most 64 KiB: a loop that is held up longer keeps others waiting."""
MESSAGE_LIMIT: Final = 4_000
"""Characters of an error: what a client sends comes back to it, and into a log, only in extracts."""
_Y: Final = (TensorSpec("y", "FP32", (-1, 2)),)
_UNCOUNTED: Final = (TensorSpec("y", "FP32", (-1, 6), counts_rows=False),)

SIGNATURES: Final = tuple(
    Signature(tuple(TensorSpec(*spec) for spec in inputs), _Y)
    for inputs in (
        [("x", "FP32", (-1, 4))],
        [("x", "FP64", (-1, 2, 3))],
        [("x", "FP16", (-1, -1))],
        [("x", "FP32", (-1,))],
        [("ids", "INT64", (-1, -1))],
        [("x", "INT8", (-1, 3))],
        [("x", "UINT64", (-1, 2))],
        [("image", "UINT8", (-1, 3, 2, 2))],
        [("flags", "BOOL", (-1, 4))],
        [("a", "FP32", (-1, 2)), ("b", "INT64", (-1,))],
        [("ids", "INT64", (-1, -1)), ("mask", "BOOL", (-1, -1))],
    )
) + tuple(
    Signature(tuple(TensorSpec(*spec, counts_rows=False) for spec in inputs), _UNCOUNTED)
    for inputs in (
        [("x", "FP32", ())],
        [("x", "BOOL", ())],
        [("x", "FP16", (1, 4))],
        [("image", "UINT8", (1, -1, -1)), ("scale", "INT16", ())],
    )
)

_SHAPE_TOKENS: Final = (
    b",", b" ", b"[", b"]", b"-1", b"0", b"1", b"4", b"\t", b"\xc2\xb2", b"1e3", b"0x4", b"_", b"+",
    b"999999999999999999", b"1000000000000000000", b",,", b"()", b"L", b"     ",
)  # fmt: skip

Read = Callable[[], dict[str, np.ndarray]]


def fuzz_codecs(seed: int, *, bodies: int = 0, seconds: float = 0.0) -> Counts:
    """So many bodies, and for so long."""
    counts, chosen = Counts("codecs"), Random(seed)
    subjects = [_Subject(signature) for signature in SIGNATURES]
    until_s = time.monotonic() + seconds
    while counts.inputs < bodies or time.monotonic() < until_s:
        subject = chosen.choice(subjects)
        chosen.choice((subject.try_json, subject.try_npy, subject.try_raw))(counts, chosen)
    return counts


@dataclass
class _Subject:
    """One signature, with good bodies of its own to be mutated."""

    signature: Signature

    def __post_init__(self) -> None:
        chosen = np.random.default_rng(5)
        self.tensors = [
            {spec.name: _tensor(spec, rows, chosen) for spec in self.signature.inputs} for rows in (1, 2, 7)
        ]
        first = next(iter(self.tensors[0]))
        values = [{name: array.tolist() for name, array in tensors.items()} for tensors in self.tensors]
        self.json = [json.dumps({"inputs": value}).encode() for value in values]
        self.npy = [_npy(version, tensors[first]) for tensors in self.tensors for version in ((1, 0), (2, 0))]
        self.npy.append(_npy((1, 0), np.asfortranarray(self.tensors[1][first])))
        self.npy.append(
            _npy((1, 0), self.tensors[1][first].astype(self.tensors[1][first].dtype.newbyteorder(">")))
        )
        self.raw = [tensors[first].tobytes() for tensors in self.tensors]
        self.shapes = [
            (",".join(map(str, tensors[first].shape)) or "[]").encode() for tensors in self.tensors
        ]
        if len(self.signature.inputs) == 1:
            self.json += [json.dumps({"inputs": value[first]}).encode() for value in values]
        self.quick = JsonRowsCodec.of(self.signature, "inputs", (b"", b""))

    def try_json(self, counts: Counts, chosen: Random) -> None:
        """json_codec against json and numpy; and the quick way against json_codec."""
        body = mutated(self.json, JSON_TOKENS, chosen)
        accepted = _try(counts, body, lambda: json_codec.decode(body, self.signature))
        if accepted is not None:
            _compare(counts, body, accepted, lambda: self._by_json(body))
        taken = None if self.quick is None else self.quick.decode(body, ())
        if taken is None:
            return
        rows, data, *_ = taken
        (spec,) = self.signature.inputs
        if accepted is None or (rows, bytes(data)) != (
            len(accepted[spec.name]),
            accepted[spec.name].tobytes(),
        ):
            counts.add("wrong", f"the quick way reads {body[:120]!r} otherwise")

    def try_npy(self, counts: Counts, chosen: Random) -> None:
        """npy_codec against numpy.load, where that reads the file."""
        body = mutated(self.npy, NPY_TOKENS, chosen)
        headers = self._headers(chosen) if chosen.random() < 0.2 else None
        accepted = _try(counts, body, lambda: npy_codec.decode(body, self.signature, headers), headers)
        if accepted is not None:
            _compare(counts, body, accepted, lambda: self._by_numpy(body))

    def try_raw(self, counts: Counts, chosen: Random) -> None:
        """raw_codec against numpy.frombuffer."""
        body = mutated(self.raw, RAW_TOKENS, chosen) if chosen.random() < 0.5 else chosen.choice(self.raw)
        headers = self._headers(chosen) if chosen.random() < 0.7 else None
        accepted = _try(counts, body, lambda: raw_codec.decode(body, self.signature, headers), headers)
        if accepted is not None:
            _compare(counts, body, accepted, lambda: self._by_bytes(body))

    def _headers(self, chosen: Random) -> TensorHeaders:
        shape = (
            mutated(self.shapes, _SHAPE_TOKENS, chosen)
            if chosen.random() < 0.8
            else chosen.choice(self.shapes)
        )
        (first, *_) = self.signature.inputs
        name = mutated([first.name.encode()], JSON_TOKENS, chosen) if chosen.random() < 0.05 else None
        return TensorHeaders(None if name is None else name.decode("latin-1"), None, shape.decode("latin-1"))

    def _by_json(self, body: bytes) -> dict[str, np.ndarray]:
        given = json.loads(body)["inputs"]
        named = given if isinstance(given, dict) else {self.signature.inputs[0].name: given}
        assert named.keys() == self.signature.inputs_by_name.keys()
        return {spec.name: np.array(named[spec.name], spec.dtype) for spec in self.signature.inputs}

    def _by_numpy(self, body: bytes) -> dict[str, np.ndarray] | None:
        (spec,) = self.signature.inputs
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about headers of Python 2
                array = np.load(io.BytesIO(body), allow_pickle=False)
        except (ValueError, OSError, EOFError, SyntaxError):
            return (
                None  # numpy is stricter about how a header is written; sizes and numbers are ours to check
            )
        if array.dtype.newbyteorder("<") != spec.dtype:
            return {}
        return {spec.name: np.asarray(array, spec.dtype, order="C")}

    def _by_bytes(self, body: bytes) -> dict[str, np.ndarray]:
        (spec,) = self.signature.inputs
        return {spec.name: np.frombuffer(body, spec.dtype)}


def _tensor(spec: TensorSpec, rows: int, chosen: np.random.Generator) -> np.ndarray:
    shape = spec.of_rows(rows, tuple(5 if dim == -1 else dim for dim in spec.row_shape))
    if spec.dtype.kind == "f":
        return np.round(np.asarray(chosen.standard_normal(shape)), 3).astype(spec.dtype)
    return np.asarray(chosen.integers(0, 2 if spec.dtype.kind == "b" else 100, shape)).astype(spec.dtype)


def _npy(version: tuple[int, int], array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version)
    return file.getvalue()


def _try(
    counts: Counts, body: bytes, read: Read, headers: TensorHeaders | None = None
) -> dict[str, np.ndarray] | None:
    """What a codec makes of it; None when it refuses it as it should."""
    counts.inputs += 1
    shown = f"{body[:120]!r}{'' if headers is None else f' with shape {headers.shape!r:.60}'}"
    began_s = time.thread_time()
    try:
        return read()
    except ServiceError as error:
        if len(str(error)) > MESSAGE_LIMIT:
            counts.add("broken_promises", f"an error of {len(str(error))} characters: {str(error)[:120]!r}")
        counts.right_refusals += 1
    except Exception as error:  # whatever it is, it is a 500
        counts.add("input_5xx", f"{type(error).__name__} {str(error)[:80]} for {shown}")
    finally:
        took_s = time.thread_time() - began_s
        counts.answered_in(took_s)
        if took_s > CPU_LIMIT_S:
            counts.add("hung", f"{took_s:.2f} s of CPU for {len(body)} bytes: {shown}")
    return None


def _compare(
    counts: Counts,
    body: bytes,
    accepted: dict[str, np.ndarray],
    read: Callable[[], dict[str, np.ndarray] | None],
) -> None:
    counts.accepted += 1
    try:
        wanted = read()
    except Exception as error:  # what the reference cannot read must not be accepted
        counts.add("wrong", f"accepted, but {type(error).__name__} {error}: {body[:120]!r}")
        return
    if wanted is None:
        return
    same = accepted.keys() == wanted.keys() and all(
        array.dtype == wanted[name].dtype
        and array.tobytes() == wanted[name].tobytes()
        and (wanted[name].ndim == 1 or array.shape == wanted[name].shape)
        for name, array in accepted.items()
    )
    if not same:
        counts.add("wrong", f"read {accepted} from {body[:120]!r}")
