"""An MLServer runtime: the model behind the Open Inference Protocol, with MLServer's adaptive batching."""

import base64

import given
import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Runtime(MLModel):
    """Raw rows come as base64 strings, JSON rows as lists of numbers."""

    async def load(self) -> bool:
        self.model = given.Model()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        (tensor,) = payload.inputs
        if given.RAW:
            rows = np.stack([np.frombuffer(base64.b64decode(text), np.float32) for text in tensor.data])
            rows = rows.reshape(-1, *given.SHAPE)
        else:
            rows = NumpyCodec.decode_input(tensor)
        output = NumpyCodec.encode_output("y", self.model(rows))
        return InferenceResponse(model_name=self.name, outputs=[output])
