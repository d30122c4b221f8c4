"""mosec with one worker. Its window cannot be 0: max_wait_time=0 means 10 ms there, so 1 ms is the least."""

import sys

import given
import mosec
import numpy as np


class Inference(mosec.Worker):
    """Decode, run a batch, encode: all in one process, which saves mosec a hop."""

    def __init__(self) -> None:
        super().__init__()
        self.model = given.Model()

    def deserialize(self, data: bytes) -> np.ndarray:
        return given.row_of(data)

    def forward(self, data: list[np.ndarray]) -> list[np.ndarray]:
        return list(self.model(np.stack(data)))

    def serialize(self, data: np.ndarray) -> bytes:
        return given.body_of(data)


if __name__ == "__main__":
    sys.argv += ["--port", str(given.PORT), "--address", "127.0.0.1", "--timeout", "30000"]
    server = mosec.Server()
    window_ms = max(1, round(given.WINDOW_S * 1000))
    server.append_worker(Inference, num=1, max_batch_size=given.MAX_BATCH, max_wait_time=window_ms)
    server.run()
