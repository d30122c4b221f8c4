"""Ray Serve: one replica, @serve.batch, plain Starlette requests."""

import signal

import given
import numpy as np
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
class Inference:
    """One ONNX model."""

    def __init__(self) -> None:
        self.model = given.Model()

    @serve.batch(max_batch_size=given.MAX_BATCH, batch_wait_timeout_s=given.WINDOW_S)
    async def run(self, rows: list[np.ndarray]) -> list[np.ndarray]:
        return list(self.model(np.stack(rows)))

    async def __call__(self, request: Request) -> Response:
        row = await self.run(given.row_of(await request.body()))
        kind = "application/octet-stream" if given.RAW else "application/json"
        return Response(given.body_of(row), media_type=kind)


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": given.PORT})
    # The decorator has made a Deployment of the class.
    serve.run(Inference.bind(), route_prefix="/predict")  # type: ignore[attr-defined]
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
