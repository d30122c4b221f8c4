"""POST /predict: JSON, the tensor's bytes, or a NumPy file; and answers in any of them."""

import io
import json
from random import Random
from typing import Any, Final

import numpy as np

from tests.torture.protocols.damage import damaged_values
from tests.torture.protocols.seam import (
    JSON,
    Asked,
    Carried,
    Protocol,
    Request,
    finite,
    one_input,
    queue_headers,
)
from tests.torture.wire import Answer

RAW: Final = "application/octet-stream"
NPY: Final = "application/x-npy"

JSON_TOKENS: Final = (
    b"[", b"]", b"{", b"}", b",", b":", b'"', b"\\", b'"inputs"', b'"x"', b"true", b"false", b"null", b"NaN",
    b"Infinity", b"-0", b"-0.0", b"1e400", b"1e39", b"-1e39", b"65520", b"1e-400", b"9223372036854775807",
    b"9223372036854775808", b"-9223372036854775809", b"18446744073709551615", b"18446744073709551616",
    b"9007199254740993", b"1.0", b"1e0", b"01", b"128", b"-129", b"256", b"[]", b"{}", b"\xef\xbb\xbf",
    b"\xff", b"\x00", b"\\u0000", b"\\ud800", b" ", b"\t\r\n", b"[[[[", b"]]]]",
)  # fmt: skip
NPY_TOKENS: Final = (
    b"'descr'", b"'fortran_order'", b"'shape'", b"True", b"False", b"'<f4'", b"'>f4'", b"'|b1'", b"'<b2'",
    b"'b8'", b"'f1'", b"'<i8'", b"'|i1'", b"'>u8'", b"'<f2'", b"'|O'", b"'<U9'", b"[('a', '<f4')]", b"(",
    b")", b",", b", ", b" ", b"   ", b"\n", b"L", b"0", b"-1", b"4", b"1000000000000000000",
    b"999999999999999999, ", b"{", b"}", b":", b"'", b'"', b"\\", b"__import__('os')", b"\x93NUMPY",
    b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x04\x00", b"\xff\xff", b"v\x00",
)  # fmt: skip
RAW_TOKENS: Final = (b"\x00", b"\x01", b"\x02", b"\xff", b"\x00\x00\xc0\x7f", b"\x00" * 16)


def read(answer: Answer, like: np.ndarray) -> np.ndarray:
    """See seam.Read: in the form that Accept asked for."""
    if answer.kind == JSON:
        return np.array(json.loads(answer.body)["outputs"]["y"], like.dtype)
    if answer.kind == NPY:
        array: np.ndarray = np.load(io.BytesIO(answer.body), allow_pickle=False)
        return array
    shape = [int(word) for word in answer.headers["x-tensor-shape"].split(",")]
    return np.frombuffer(answer.body, like.dtype).reshape(shape)


def accepted(asked: Asked, chosen: Random) -> str:
    """What the answer is to be."""
    return chosen.choice(("", "", JSON, RAW, NPY) if finite(asked) else (RAW, NPY))


def _request(asked: Asked, chosen: Random, kind: str, body: bytes, *headers: str) -> Request:
    accept = accepted(asked, chosen)
    asks = (f"accept: {accept}",) if accept else ()
    name = {JSON: "json", RAW: "raw", NPY: "npy"}[kind]
    headers = (*headers, *asks, *queue_headers(asked))
    return Request(asked, name, body, read, f"/predict/{asked.model}", kind, headers)


def write_json(asked: Asked, chosen: Random) -> Request:
    values: Any = {name: array.tolist() for name, array in asked.inputs.items()}
    if len(values) == 1 and chosen.random() < 0.7:
        (values,) = values.values()
    return _request(asked, chosen, JSON, json.dumps({"inputs": values}).encode())


def _write_npy(asked: Asked, chosen: Random) -> Request:
    (array,) = asked.inputs.values()
    file = io.BytesIO()
    np.save(file, array)
    return _request(asked, chosen, NPY, file.getvalue())


def _write_raw(asked: Asked, chosen: Random) -> Request:
    (array,) = asked.inputs.values()
    shape = f"x-tensor-shape: {','.join(map(str, array.shape))}"
    return _request(asked, chosen, RAW, array.tobytes(), *([] if asked.model == "linear" else [shape]))


def _spoil_json(asked: Asked, chosen: Random) -> Request:
    body = json.dumps({"inputs": damaged_values(asked, chosen)}).encode()
    if chosen.random() < 0.2:
        body = write_json(asked, chosen).body[:-2]
    return _request(asked, chosen, JSON, body).to_be_refused()


def _spoil_raw(asked: Asked, chosen: Random) -> Request:
    (array,) = asked.inputs.values()
    return _request(asked, chosen, RAW, array.tobytes() + b"\0").to_be_refused()


def _spoil_npy(asked: Asked, chosen: Random) -> Request:
    body = _write_npy(asked, chosen).body
    return _request(asked, chosen, NPY, body[: chosen.randrange(len(body))]).to_be_refused()


PREDICT: Final = (
    Protocol("json", Carried.HTTP, write_json, _spoil_json, JSON_TOKENS, finite),
    Protocol("raw", Carried.HTTP, _write_raw, _spoil_raw, RAW_TOKENS, one_input),
    Protocol("npy", Carried.HTTP, _write_npy, _spoil_npy, NPY_TOKENS, one_input),
)
