"""One HTTP request of each kind, without the address of the server. Pure."""

import io
import json
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from foldserve.service.client.deadline import servers_part_s
from foldserve.service.client.errors import BadInput
from foldserve.service.client.pictures import Picture
from foldserve.service.client.tensors import Tensor

HEAD_LENGTH: Final = "Inference-Header-Content-Length"
RAW: Final = "application/octet-stream"
NPY: Final = "application/x-npy"
JSON: Final = "application/json"
_PICTURES_ACCEPT: Final = f"{RAW}, {JSON};q=0.5"
"""Raw numbers, or of several outputs JSON, which alone holds them all."""
_MAX_TIMEOUT_MS: Final = 86_400_000
"""The most that a server lets X-Timeout-Ms say; more is as good as no bound."""
_ID_CHARS: Final = 128


@dataclass(frozen=True)
class Call:
    """body: None for a GET."""

    path: str
    headers: Mapping[str, str]
    body: bytes | None = None

    @property
    def method(self) -> str:
        """GET or POST."""
        return "GET" if self.body is None else "POST"

    def bounded(self, left_s: float) -> "Call":
        """The same, with the time that the server has for it."""
        timeout_ms = min(servers_part_s(left_s) * 1000, _MAX_TIMEOUT_MS)
        return Call(
            self.path, {**self.headers, "X-Timeout-Ms": f"{timeout_ms:.3f}"}, self.body
        )  # never as 1e+06


def infer_call(
    model: str, version: str | int | None, tensors: Sequence[Tensor], outputs: Sequence[str]
) -> Call:
    """Of the Open Inference Protocol, with the tensors' bytes behind the JSON. outputs: none for all."""
    described = tuple((one.name, one.datatype, one.array.shape, one.array.nbytes) for one in tensors)
    head = _infer_head(described, tuple(outputs))
    body = b"".join((head, *(one.array.data for one in tensors)))
    headers = {"Content-Type": RAW, HEAD_LENGTH: str(len(head))}
    return Call(f"{_model_path('/v2/models', model, version)}/infer", headers, body)


@lru_cache(maxsize=256)
def _infer_head(
    described: tuple[tuple[str, str, tuple[int, ...], int], ...], outputs: tuple[str, ...]
) -> bytes:
    """The JSON of requests for such tensors: name, datatype, shape, bytes."""
    inputs = [
        {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}
        for name, datatype, shape, size in described
    ]
    document: dict[str, object] = {"inputs": inputs, "parameters": {"binary_data_output": True}}
    if outputs:
        document["outputs"] = [{"name": name} for name in outputs]
    return json.dumps(document, separators=(",", ":")).encode()


def picture_call(
    model: str, version: str | int | None, picture: Picture, output: str | None, top: int | None
) -> Call:
    """A picture, to be answered with numbers, or with the labels of so many of the largest scores."""
    accept = _PICTURES_ACCEPT if top is None else JSON
    headers = {"Content-Type": picture.media_type, "Accept": accept}
    return Call(_predict_path(model, version, output, top), headers, picture.body)


def labels_call(
    model: str, version: str | int | None, rows: np.ndarray, output: str | None, top: int
) -> Call:
    """Rows of a model's one input, to be answered with labels."""
    file = io.BytesIO()
    np.save(file, rows, allow_pickle=False)
    headers = {"Content-Type": NPY, "Accept": JSON}
    return Call(_predict_path(model, version, output, top), headers, file.getvalue())


def info_call() -> Call:
    """What the server says of itself and all models."""
    return Call("/info", {})


def metadata_call(model: str, version: str | int | None) -> Call:
    """A model's inputs and outputs."""
    return Call(_model_path("/v2/models", model, version), {})


def ready_call(model: str | None) -> Call:
    """Whether a model is ready; None for all."""
    return Call(
        "/v2/health/ready" if model is None else f"{_model_path('/v2/models', model, None)}/ready", {}
    )


def check_request_id(request_id: str) -> str:
    """Raises: BadInput for one that no header can carry."""
    if (
        not request_id
        or len(request_id) > _ID_CHARS
        or not (request_id.isascii() and request_id.isprintable())
    ):
        raise BadInput(
            f"request_id is {request_id[:_ID_CHARS]!r}; expected 1 to {_ID_CHARS} printable ASCII characters"
        )
    return request_id


def _model_path(prefix: str, model: str, version: str | int | None) -> str:
    path = f"{prefix}/{urllib.parse.quote(model, safe='')}"
    return path if version is None else f"{path}/versions/{urllib.parse.quote(str(version), safe='')}"


def _predict_path(model: str, version: str | int | None, output: str | None, top: int | None) -> str:
    asked = {name: value for name, value in (("output", output), ("top", top)) if value is not None}
    query = f"?{urllib.parse.urlencode(asked)}" if asked else ""
    return _model_path("/predict", model, version) + query
