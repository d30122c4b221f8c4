"""The model in a loop in one process, without a server: rows/s, and CPU per row, at several batch sizes.

    python -m benchmarks.serving.in_process MODEL.onnx --shape 3,32,32 --batches 1,8,32 --seconds 2

Does what any server must do besides HTTP: rows come as bytes of their own, are gathered into one batch buffer, run
on one thread, and each row's answer leaves as bytes. Prints JSON: {"<batch>": [rows per second, CPU µs per row]}.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from foldserve.service.backends.onnxruntime.library import onnxruntime

_KEPT_BYTES = 32 * 2**20
"""Bodies that take turns: more than a cache holds, as with a server's clients."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--shape", type=lambda text: tuple(map(int, text.split(","))))
    parser.add_argument("--batches", type=lambda text: list(map(int, text.split(","))), default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args(arguments)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(options.model), settings, providers=["CPUExecutionProvider"])
    print(json.dumps({str(b): measure(session, options.shape, b, options.seconds) for b in options.batches}))


def measure(
    session: onnxruntime.InferenceSession, shape: tuple[int, ...], batch: int, seconds: float
) -> tuple[float, float]:
    """Rows per second and CPU microseconds per row."""
    name = session.get_inputs()[0].name
    one = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    row_bytes = one.nbytes
    bodies = [one.tobytes() for _ in range(max(batch, min(256, _KEPT_BYTES // row_bytes)))]
    buffer = np.empty((batch, *shape), np.float32)
    target = buffer.reshape(-1).view(np.uint8).data

    def turn(at: int) -> int:
        for i in range(batch):
            target[i * row_bytes : (i + 1) * row_bytes] = bodies[(at + i) % len(bodies)]
        output = session.run(None, {name: buffer})[0]
        for row in output:
            row.tobytes()
        return at + batch

    rows = 0
    warm_until_s = time.perf_counter() + 0.2
    while time.perf_counter() < warm_until_s:
        turn(0)
    began_s, cpu_s = time.perf_counter(), time.process_time()
    while time.perf_counter() < began_s + seconds:
        rows = turn(rows)
    took_s, used_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    return rows / took_s, used_s / rows * 1e6


if __name__ == "__main__":
    main()
