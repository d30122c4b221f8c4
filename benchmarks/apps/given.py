"""What a server of this folder is told through its environment. Imported by servers in environments of their own."""

import json
import os
from typing import Any

import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = (
    "1"  # as service/backends/onnxruntime/library.py, which is not to be had in those environments
)
import onnxruntime

RAW = bool(os.environ.get("BENCH_RAW"))
"""Whether rows come as bytes; else as JSON {"inputs": [[...]]}."""
SHAPE = tuple(map(int, os.environ.get("BENCH_SHAPE", "10").split(",")))
WINDOW_S = int(os.environ.get("BENCH_WINDOW_MS", "0")) / 1000
PORT = int(os.environ.get("BENCH_PORT", "8000"))
MAX_BATCH = 32


class Model:
    """The model on one thread: rows (n, *SHAPE) in, rows out."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = os.environ["BENCH_MODEL"]
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        answer: np.ndarray = self._session.run(None, {self._input: np.ascontiguousarray(rows, np.float32)})[0]
        return answer


def row_of(body: bytes) -> np.ndarray:
    """The one row of a request."""
    if RAW:
        return np.frombuffer(body, np.float32).reshape(SHAPE)
    return np.array(json.loads(body)["inputs"][0], np.float32)


def body_of(row: np.ndarray) -> bytes:
    """The answer for one row, in the request's own form."""
    return row.tobytes() if RAW else json.dumps(outputs_of(row)).encode()


def outputs_of(row: np.ndarray) -> dict[str, Any]:
    """The answer as JSON has it."""
    return {"outputs": [row.tolist()]}
