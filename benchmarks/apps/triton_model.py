"""A model of Triton's Python backend: the requests of a batch are joined, run once, and told apart again."""

import os
import sys
from typing import Any

sys.path[:0] = os.environ["PYTHONPATH"].split(":")  # which Triton's Python, being isolated, does not read

import given  # noqa: E402
import numpy as np  # noqa: E402
import triton_python_backend_utils as triton  # noqa: E402


class TritonPythonModel:
    """One ONNX model."""

    def initialize(self, args: dict[str, Any]) -> None:
        self.model = given.Model()

    def execute(self, requests: list[Any]) -> list[Any]:
        rows = [triton.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        outputs = self.model(np.concatenate(rows))
        parts = np.split(outputs, np.cumsum([len(one) for one in rows])[:-1])
        return [triton.InferenceResponse([triton.Tensor("y", part)]) for part in parts]
