"""LitServe as its README shows it, with batching on: LitAPI, LitServer, nothing else set."""

import base64
from typing import Any

import given
import litserve
import numpy as np


class Api(litserve.LitAPI):
    """One ONNX model."""

    def setup(self, device: str) -> None:
        self.model = given.Model()

    def decode_request(self, request: dict[str, Any]) -> np.ndarray:
        inputs = request["inputs"]
        if given.RAW:
            return np.frombuffer(base64.b64decode(inputs), np.float32).reshape(given.SHAPE)
        return np.array(inputs[0], np.float32)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.model(x)

    def encode_response(self, output: np.ndarray) -> dict[str, Any]:
        return given.outputs_of(output)


if __name__ == "__main__":
    api = Api(max_batch_size=given.MAX_BATCH, batch_timeout=given.WINDOW_S)
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(port=given.PORT, generate_client_file=False)
