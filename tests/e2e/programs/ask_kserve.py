"""Every call of KServe's client that is served; prints a line of JSON with what it was told."""

import asyncio
import json
import sys

import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

ROWS = np.arange(20, dtype=np.float32).reshape(2, 10)


def request(binary: bool, model: str = "mlp") -> InferRequest:
    x = InferInput("x", [2, 10], "FP32")
    x.set_data_from_numpy(ROWS, binary_data=binary)
    return InferRequest(model, [x], request_id="find me")


async def main(url: str, address: str) -> None:
    told: dict[str, object] = {}
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    told["live"] = await client.is_server_live(url)
    told["ready"] = await client.is_server_ready(url)
    told["model ready"] = await client.is_model_ready(url, "mlp")
    told["nobody ready"] = await client.is_model_ready(url, "nobody")
    for binary in (True, False):
        result = await client.infer(url, request(binary), model_name="mlp")
        told[f"binary {binary}"] = [result.id, result.outputs[0].as_numpy().tolist()]
    try:
        await client.infer(url, {"inputs": []}, model_name="nobody")
    except httpx.HTTPStatusError as error:
        told["refusal"] = [error.response.status_code, error.response.json()["code"]]
    v1 = InferenceRESTClient(RESTConfig(protocol="v1"))
    told["v1 live"] = await v1.is_server_live(url)
    told["v1 ready"] = await v1.is_model_ready(url, "mlp")
    told["v1"] = (await v1.infer(url, {"instances": ROWS.tolist()}, model_name="mlp"))["predictions"]
    grpc = InferenceGRPCClient(address)
    told["grpc live"] = await grpc.is_server_live()
    told["grpc ready"] = await grpc.is_server_ready()
    told["grpc model ready"] = await grpc.is_model_ready("mlp")
    result = await grpc.infer(request(True))
    told["grpc"] = [result.id, result.outputs[0].as_numpy().tolist()]
    for one in (client, v1, grpc):
        await one.close()
    print(json.dumps(told))


asyncio.run(main(*sys.argv[1:]))
