"""A row of a workload in the Open Inference Protocol: tritonclient's own bytes, and the numbers of an answer."""

import json
from dataclasses import replace
from typing import Final

import numpy as np
import tritonclient.http as triton

from benchmarks.serving.servers import CLIENT, Read, Request
from benchmarks.serving.workloads import LIGHT, MLP, Work
from foldserve.service.backends.onnxruntime.cpu_session import read_signature

OIP_WORKS: Final = (
    MLP,
    replace(MLP, key="mlp-binary", title="MLP 10→20→5, binary", raw=True),
    replace(LIGHT, title="light net, 3x224x224 binary (602 KB)"),
)
"""What servers of the protocol are compared with."""


def infer(work: Work, *, binary: bool, identity: str = "") -> Request:
    """The request with the row of a workload, in and out as JSON or as bytes."""
    signature = read_signature(work.onnx)
    tensor = triton.InferInput(signature.inputs[0].name, list(work.row.shape), "FP32")
    tensor.set_data_from_numpy(work.row, binary_data=binary)
    output = triton.InferRequestedOutput(signature.outputs[0].name, binary_data=binary)
    body, length = triton.InferenceServerClient.generate_request_body(
        [tensor], outputs=[output], request_id=identity
    )
    told = {} if length is None else {"Inference-Header-Content-Length": str(length)}
    return Request(f"/v2/models/{work.model}/infer", {**CLIENT, **told}, body)


def ask(work: Work) -> tuple[Request, Read]:
    """As a Contender asks: binary where the workload is raw."""
    return infer(work, binary=work.raw), _numbers


def _numbers(body: bytes) -> np.ndarray:
    text = body.decode("latin-1")  # a byte a character, so that the place in one is that in the other
    document, end = json.JSONDecoder().raw_decode(text)
    (output,) = document["outputs"]
    if "data" in output:
        return np.array(output["data"], np.float32)
    size = output["parameters"]["binary_data_size"]
    return np.frombuffer(body[end : end + size], np.float32)
