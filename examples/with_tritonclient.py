"""NVIDIA's client (pip install "tritonclient[http]").   python examples/with_tritonclient.py [URL]"""

import sys

import numpy as np
import tritonclient.http as triton


def main(url: str = "http://localhost:8000") -> None:
    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        x = triton.InferInput("x", [1, 10], "FP32")
        x.set_data_from_numpy(np.arange(10, dtype=np.float32).reshape(1, 10))
        print(client.infer("mlp", [x]).as_numpy("y"))


main(*sys.argv[1:])
