"""KServe's client (pip install kserve), in its three ways.

python examples/with_kserve.py [URL [HOST:PORT of gRPC]]
"""

import asyncio
import sys

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig


async def main(url: str = "http://localhost:8000", grpc: str = "") -> None:
    rows = np.arange(10, dtype=np.float32).reshape(1, 10)
    x = InferInput("x", [1, 10], "FP32")
    x.set_data_from_numpy(rows)

    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    result = await client.infer(url, InferRequest("mlp", [x]), model_name="mlp")
    print(result.outputs[0].as_numpy())
    await client.close()

    client = InferenceRESTClient(RESTConfig(protocol="v1"))
    print(await client.infer(url, {"instances": rows.tolist()}, model_name="mlp"))
    await client.close()

    if grpc:
        caller = InferenceGRPCClient(grpc)
        result = await caller.infer(InferRequest("mlp", [x]))
        print(result.outputs[0].as_numpy())
        await caller.close()


asyncio.run(main(*sys.argv[1:]))
