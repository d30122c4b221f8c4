"""The Open Inference Protocol over REST: tensors in the JSON, behind it, or the bytes of one and nothing else."""

import json
from random import Random
from typing import Any, Final

import numpy as np

from tests.torture.protocols.damage import DTYPES, Tensor, damaged_tensors, described
from tests.torture.protocols.predict import JSON_TOKENS
from tests.torture.protocols.seam import (
    JSON,
    Asked,
    Carried,
    Protocol,
    Request,
    Swapped,
    finite,
    one_input,
    queue_headers,
)
from tests.torture.wire import Answer

LENGTH: Final = "inference-header-content-length"
_TOKENS: Final = (
    *JSON_TOKENS,
    b'"outputs"', b'"name"', b'"shape"', b'"datatype"', b'"data"', b'"parameters"', b'"binary_data_size"',
    b'"binary_data"', b'"binary_data_output"', b'"classification"', b'"shared_memory_region"', b'"timeout"',
    b'"priority"', b'"id"', b'"FP32"', b'"FP16"', b'"BF16"', b'"BYTES"', b'"BOOL"', b'"INT64"', b'"y"',
)  # fmt: skip


def reader(request_id: str) -> Any:
    """See seam.Read: of the answer to the request of this id."""

    def read(answer: Answer, like: np.ndarray) -> np.ndarray:
        length = int(answer.headers.get(LENGTH, len(answer.body)))
        document = json.loads(answer.body[:length])
        if document.get("id") != request_id:
            raise Swapped(f"asked as {request_id}, the answer's id is {document.get('id')}")
        (output,) = document["outputs"]
        dtype = DTYPES[output["datatype"]]
        if "data" in output:
            return np.array(output["data"], dtype).reshape(output["shape"])
        size = output["parameters"]["binary_data_size"]
        if size != len(answer.body) - length:
            raise ValueError(f"{size} bytes are announced and {len(answer.body) - length} came")
        return np.frombuffer(answer.body[length:], dtype).reshape(output["shape"])

    return read


def parameters(asked: Asked) -> dict[str, Any]:
    """How this protocol says how long a request may wait, and with what priority."""
    timeout_us = None if asked.timeout_ms is None else asked.timeout_ms * 1000
    said = {"timeout": timeout_us, "priority": asked.level}
    return {name: value for name, value in said.items() if value is not None}


def _document(asked: Asked, tensors: list[Tensor], chosen: Random, *, binary: bool) -> tuple[bytes, bytes]:
    """The JSON, and the bytes behind it. binary: which of both the tensors and the answer are."""
    inputs, parts = [], []
    for tensor in tensors:
        given = {key: value for key, value in tensor.items() if key != "array"}
        array = tensor["array"]
        if binary:
            parts.append(array.tobytes())
            given["parameters"] = {"binary_data_size": array.nbytes}
        else:
            given["data"] = (array if chosen.random() < 0.5 else array.ravel()).tolist()
        inputs.append(given)
    document = {"id": asked.request_id, "inputs": inputs, "parameters": parameters(asked)}
    if chosen.random() < 0.5:
        document["outputs"] = [{"name": "y", "parameters": {"binary_data": binary}}]
    elif binary:
        document["parameters"]["binary_data_output"] = True
    return json.dumps(document).encode(), b"".join(parts)


def _request(asked: Asked, tensors: list[Tensor], chosen: Random, *, binary: bool) -> Request:
    head, data = _document(asked, tensors, chosen, binary=binary)
    kind, headers = (JSON, ()) if not binary else ("application/octet-stream", (f"{LENGTH}: {len(head)}",))
    name = "OIP binary" if binary else "OIP JSON"
    path = f"/v2/models/{asked.model}/infer"
    return Request(asked, name, head + data, reader(asked.request_id), path, kind, headers)


def _write_json(asked: Asked, chosen: Random) -> Request:
    return _request(asked, described(asked), chosen, binary=False)


def _write_binary(asked: Asked, chosen: Random) -> Request:
    return _request(asked, described(asked), chosen, binary=True)


def _spoil_json(asked: Asked, chosen: Random) -> Request:
    return _request(asked, damaged_tensors(asked, chosen), chosen, binary=False).to_be_refused()


def _spoil_binary(asked: Asked, chosen: Random) -> Request:
    return _request(asked, damaged_tensors(asked, chosen), chosen, binary=True).to_be_refused()


def _bare_headers(asked: Asked) -> tuple[str, ...]:
    return f"{LENGTH}: 0", *queue_headers(asked)


def _bare_reader(answer: Answer, like: np.ndarray) -> np.ndarray:
    """Such a request has no id that could come back."""
    length = int(answer.headers[LENGTH])
    (output,) = json.loads(answer.body[:length])["outputs"]
    return np.frombuffer(answer.body[length:], DTYPES[output["datatype"]]).reshape(output["shape"])


def _write_bare(asked: Asked, chosen: Random) -> Request:
    (array,) = asked.inputs.values()
    path = f"/v2/models/{asked.model}/infer"
    return Request(asked, "OIP bare", array.tobytes(), _bare_reader, path, "", _bare_headers(asked))


def _spoil_bare(asked: Asked, chosen: Random) -> Request:
    good = _write_bare(asked, chosen)
    body = good.body + b"\0" if chosen.random() < 0.5 else b""
    return Request(asked, "OIP bare", body, good.read, good.path, "", good.headers).to_be_refused()


OIP: Final = (
    Protocol("OIP JSON", Carried.HTTP, _write_json, _spoil_json, _TOKENS, finite),
    Protocol("OIP binary", Carried.HTTP, _write_binary, _spoil_binary, (*_TOKENS, b"\x00\x00\xc0\x7f")),
    Protocol(
        "OIP bare",
        Carried.HTTP,
        _write_bare,
        _spoil_bare,
        (b"\x00", b"\xff", b"\x00\x00\xc0\x7f", b"\x00" * 16),
        lambda asked: one_input(asked) and asked.model in ("linear", "colours"),
    ),
)
"""The last one says no shape: only models whose rows alone may vary can be asked so."""
