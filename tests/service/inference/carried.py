"""The same request, rows of ones to the model y = x + 1, as each protocol carries it over HTTP."""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

ROUTE = "/predict/{model}"
INFER = "/v2/models/{model}/infer"
PREDICTIONS = "/predictions/{model}"
V1 = "/v1/models/{model}:predict"
OIP_TENSOR = {"name": "x", "datatype": "FP32"}


@dataclass(frozen=True)
class Carried:
    """A request of one protocol: label of the metrics, route, body and headers for so many rows, and the numbers in an
    answer's body, whose headers are given."""

    label: str
    route: str
    body: Callable[[np.ndarray], bytes]
    values: Callable[[bytes, Mapping[str, str]], np.ndarray]
    headers: Callable[[np.ndarray], tuple[str, ...]] = field(default=lambda x: ())

    @property
    def path(self) -> str:
        """What is asked for."""
        return self.route.replace("{model}", "m0")


def typed(media_type: str) -> Callable[[np.ndarray], tuple[str, ...]]:
    return lambda x: (f"Content-Type: {media_type}",)


def saved(x: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, x)
    return file.getvalue()


def oip_head(x: np.ndarray) -> bytes:
    """The JSON before the bytes."""
    tensor = {**OIP_TENSOR, "shape": list(x.shape), "parameters": {"binary_data_size": x.nbytes}}
    return json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()


def oip_json(x: np.ndarray) -> bytes:
    return json.dumps({"inputs": [{**OIP_TENSOR, "shape": list(x.shape), "data": x.tolist()}]}).encode()


def oip_values(body: bytes, headers: Mapping[str, str]) -> np.ndarray:
    end = int(headers.get("inference-header-content-length", len(body)))
    (output,) = json.loads(body[:end])["outputs"]
    data = np.frombuffer(body[end:], "f4") if end < len(body) else np.array(output["data"], "f4")
    return data.reshape(output["shape"])


CARRIED = {
    "json": Carried(
        "json",
        ROUTE,
        lambda x: json.dumps({"inputs": x.tolist()}).encode(),
        lambda body, _: np.array(json.loads(body)["outputs"]["y"], "f4"),
        typed("application/json"),
    ),
    "raw": Carried(
        "raw",
        ROUTE,
        lambda x: x.tobytes(),
        lambda body, _: np.frombuffer(body, "f4").reshape(-1, 2),
        typed("application/octet-stream"),
    ),
    "npy": Carried(
        "npy", ROUTE, saved, lambda body, _: np.load(io.BytesIO(body)), typed("application/x-npy")
    ),
    "oip JSON": Carried("oip", INFER, oip_json, oip_values),
    "oip binary": Carried(
        "oip",
        INFER,
        lambda x: oip_head(x) + x.tobytes(),
        oip_values,
        lambda x: (f"Inference-Header-Content-Length: {len(oip_head(x))}",),
    ),
    "v1": Carried(
        "v1",
        V1,
        lambda x: json.dumps({"instances": x.tolist()}).encode(),
        lambda body, _: np.array(json.loads(body)["predictions"], "f4"),
    ),
    "torchserve": Carried(
        "torchserve",
        PREDICTIONS,
        lambda x: json.dumps(x.tolist()).encode(),
        lambda body, _: np.array(json.loads(body), "f4"),
    ),
}
