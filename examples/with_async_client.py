"""The same for coroutines: a hundred requests at once, which the server runs in batches.

python examples/with_async_client.py [URL [MODEL PICTURE]]
"""

import asyncio
import sys

import numpy as np

from foldserve import AsyncClient


async def main(url: str = "http://localhost:8000", model: str = "", picture: str = "") -> None:
    async with AsyncClient(url) as client:
        rows = [np.arange(10, dtype=np.float32).reshape(1, 10) * number for number in range(100)]
        answers = await asyncio.gather(*(client["mlp"](row) for row in rows))
        print(answers[1])
        if picture:
            (labels,) = await client[model].classify([picture], top=1)
            print(labels[0].label)


asyncio.run(main(*sys.argv[1:]))
