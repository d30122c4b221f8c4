"""A BentoML service with adaptive batching."""

from typing import Any

import bentoml
import given
import numpy as np

if given.RAW:

    @bentoml.service(workers=1, traffic={"timeout": 30, "max_concurrency": 512})
    class Inference:
        def __init__(self) -> None:
            self.model = given.Model()

        @bentoml.api(batchable=True, max_batch_size=given.MAX_BATCH, max_latency_ms=1000)
        def predict(self, rows: list[str]) -> list[list[float]]:
            import base64

            stacked = np.stack([np.frombuffer(base64.b64decode(text), np.float32) for text in rows])
            answer: list[list[float]] = self.model(stacked.reshape(-1, *given.SHAPE)).tolist()
            return answer

else:

    @bentoml.service(workers=1, traffic={"timeout": 30, "max_concurrency": 512})
    class Inference:  # type: ignore[no-redef]
        def __init__(self) -> None:
            self.model = given.Model()

        @bentoml.api(batchable=True, max_batch_size=given.MAX_BATCH, max_latency_ms=1000)
        def predict(self, rows: list[Any]) -> list[list[float]]:
            answer: list[list[float]] = self.model(np.array(rows, np.float32)).tolist()
            return answer
