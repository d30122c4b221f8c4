"""NVIDIA's client over gRPC (pip install "tritonclient[grpc]"; foldserve serve ... --grpc-port 8001).

python examples/with_tritonclient_grpc.py [HOST:PORT]
"""

import sys

import numpy as np
import tritonclient.grpc as triton


def main(address: str = "localhost:8001") -> None:
    with triton.InferenceServerClient(address) as client:
        x = triton.InferInput("x", [1, 10], "FP32")
        x.set_data_from_numpy(np.arange(10, dtype=np.float32).reshape(1, 10))
        print(client.infer("mlp", [x], client_timeout=10).as_numpy("y"))


main(*sys.argv[1:])
