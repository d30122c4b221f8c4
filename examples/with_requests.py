"""The library requests, which any program may have; httpx is the same.

python examples/with_requests.py [URL [MODEL PICTURE]]
"""

import sys

import numpy as np
import requests


def main(url: str = "http://localhost:8000", model: str = "", picture: str = "") -> None:
    x = np.arange(10, dtype="<f4").reshape(1, 10)
    with requests.Session() as session:  # keeps the connection
        answer = session.post(f"{url}/predict/mlp", json={"inputs": x.tolist()}, timeout=10)
        answer.raise_for_status()
        print(answer.json()["outputs"]["y"])

        # As bytes, for large arrays: no number becomes text.
        headers = {"Content-Type": "application/octet-stream", "X-Tensor-Shape": "1,10"}
        answer = session.post(f"{url}/predict/mlp", data=x.tobytes(), headers=headers, timeout=10)
        answer.raise_for_status()
        shape = [int(size) for size in answer.headers["X-Tensor-Shape"].split(",")]
        print(np.frombuffer(answer.content, "<f4").reshape(shape))

        if picture:
            with open(picture, "rb") as file:
                headers = {"Content-Type": "image/jpeg"}
                answer = session.post(
                    f"{url}/predict/{model}", params={"top": 1}, data=file, headers=headers, timeout=10
                )
            answer.raise_for_status()
            print(answer.json()["top"])


main(*sys.argv[1:])
