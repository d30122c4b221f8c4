"""Several models, several workers, plain load: each worker lives on, whoever of them waits for whom.

What a worker's threads wait for together may look like a deadlock to the kernel, which takes all threads of a process
for one; with one model or one worker nothing of that kind can be seen.
"""

import asyncio
from pathlib import Path

import pytest

from tests.torture import models
from tests.torture.asking import Clients
from tests.torture.counts import Counts
from tests.torture.links.seam import Ports
from tests.torture.running import OPTIONS, check_calm, ports_of, running

pytestmark = pytest.mark.e2e

SERVED = ("linear", "digits", "pair")
ANSWERS = 25_000
"""At the rate of a small machine some seconds, in which workers that are wrong about a deadlock die more than once."""


def test_two_workers_with_three_models_live_through_plain_load(tmp_path: Path) -> None:
    counts = Counts("plain load")

    async def run(ports: Ports) -> None:
        clients = Clients(ports, counts, 1, SERVED, misbehave=False)
        async with clients.asking(32):
            await clients.until(lambda: counts.verified >= ANSWERS, 240.0)

    repository = models.make_repository(tmp_path / "repository", SERVED)
    with running(repository, tmp_path / "output", counts, *OPTIONS) as family:
        asyncio.run(run(ports_of(family.server)))
        assert family.server.metric("foldserve_worker_restarts_total", device="cpu") == 0
        check_calm(family.server, counts, SERVED)
    assert counts.broken_bounds() == [], counts.examples
