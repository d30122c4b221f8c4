"""A model of KServe's Python SDK behind its model server: one request at a time, for it does not batch."""

import argparse
from typing import Any

import given
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer, model_server


class OneModel(Model):
    """One ONNX model."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.model = given.Model()
        self.ready = True

    async def predict(self, payload: InferRequest, headers: Any = None, response_headers: Any = None) -> Any:
        answer = self.model(payload.inputs[0].as_numpy())
        binary = bool(
            payload.request_outputs and (payload.request_outputs[0].parameters or {}).get("binary_data")
        )
        output = InferOutput("y", list(answer.shape), "FP32")
        output.set_data_from_numpy(answer, binary_data=binary)
        return InferResponse(payload.id or "0", self.name, [output])


if __name__ == "__main__":
    options = argparse.ArgumentParser(parents=[model_server.parser]).parse_args()
    ModelServer(workers=1).start([OneModel(options.model_name)])
