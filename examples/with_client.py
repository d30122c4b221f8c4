"""foldserve's own client.   python examples/with_client.py [URL [MODEL PICTURE]]"""

import sys

import numpy as np

from foldserve import Client

url, model, picture, *_ = (*sys.argv[1:], *["http://localhost:8000", "", ""][len(sys.argv) - 1 :])
x = np.arange(10, dtype=np.float32).reshape(1, 10)

with Client(url) as client:
    print(client["mlp"](x))
    if picture:
        for label, score in client[model].classify(picture, top=3):
            print(f"{score:8.3f}  {label}")
