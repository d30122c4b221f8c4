"""The parts of the torture that load a server: each starts one, does its worst, and returns its counts."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from tests.e2e.server_process import ServerProcess, serving, wait_gone
from tests.torture import models
from tests.torture.asking import Clients
from tests.torture.counts import NEVER, Counts
from tests.torture.family import Family
from tests.torture.fuzz_bodies import fuzz_bodies
from tests.torture.fuzz_wire import fuzz_wire
from tests.torture.greedy.runner import Greedy, Hogs
from tests.torture.links.seam import Ports
from tests.torture.running import (
    OPTIONS,
    check_calm,
    check_descriptors,
    check_log,
    end,
    open_descriptors,
    ports_of,
    running,
)
from tests.torture.stalls import Prober
from tests.torture.trouble import Appetite, trouble

CONNECTIONS: Final = 32
_STILL_LIMIT_S: Final = 240.0
"""After its time, a part waits so long for what must still come; then the load stands still."""
_QUIET_S: Final = 1.0
_GRACE_S: Final = 1.0
_BEFORE_THE_END: Final = 500
"""Answers before the signal: every connection has had some."""


@dataclass(frozen=True)
class Budget:
    """How long a part goes on: for so many seconds, and until so many answers are verified and so much was harmed."""

    seconds: float = 0.0
    verified: int = 0
    harms: int = 0

    async def spend(self, clients: Clients, also: Callable[[], bool] = lambda: True) -> None:
        """Let the clients ask for so long, and until the condition holds."""
        counts, until_s = clients.counts, time.monotonic() + self.seconds
        await clients.until(
            lambda: (
                time.monotonic() >= until_s
                and counts.verified >= self.verified
                and counts.kills + counts.stops >= self.harms
                and also()
            ),
            self.seconds + _STILL_LIMIT_S,
        )


def unharmed(
    folder: Path,
    budget: Budget,
    seed: int,
    hogs: tuple[Greedy, ...],
    served: tuple[str, ...] = models.MODELS,
) -> Counts:
    """Nothing is killed: whatever is asked beside them, good requests get their own answers, and nobody waits long."""
    counts = Counts("nothing killed")
    repository = models.make_repository(folder / "repository", served)
    with running(repository, folder / "output", counts, *OPTIONS) as family:
        ports, pids = ports_of(family.server), family.server.api_servers()
        with Prober(ports.http, pids) as before:
            time.sleep(_QUIET_S)  # the time in which nothing happens is what is measured
        counts.quiet_ms = before["seen_ms"]
        descriptors = open_descriptors(pids)
        sent = Hogs(ports, counts, seed, hogs)
        with Prober(ports.http, pids) as prober:
            asyncio.run(_ask_beside(Clients(ports, counts, seed, served), budget, sent))
        prober.put_into(counts)
        counts.examples["stall_ms"] = [
            f"beside {name}" for name in sent.beside(prober["from_s"], prober["to_s"])
        ]
        check_calm(family.server, counts, served)
        check_descriptors(family.server, pids, counts, descriptors)
    return counts


async def _ask_beside(clients: Clients, budget: Budget, sent: Hogs) -> None:
    async with clients.asking(CONNECTIONS):
        with sent:
            await budget.spend(clients, lambda: sent.rounds > 0)
            await asyncio.to_thread(sent.stop)  # the clients ask on until its last answer is there


def fuzzed(
    folder: Path, seed: int, served: tuple[str, ...], *, requests: int = 0, seconds: float = 0.0
) -> Counts:
    """Mutated requests over real connections; afterwards the server is as it was."""
    counts = Counts("wire")
    repository = models.make_repository(folder / "repository", served)
    with running(repository, folder / "output", counts, *OPTIONS) as family:
        port = ports_of(family.server).http
        asyncio.run(fuzz_wire(port, counts, seed, served, requests=requests, seconds=seconds))
        check_calm(family.server, counts, served)
        check_log(family.server, counts)
    return counts


def fuzzed_bodies(
    folder: Path, seed: int, served: tuple[str, ...], *, bodies: int = 0, seconds: float = 0.0
) -> Counts:
    """Mutated bodies and messages of every protocol; afterwards the server is as it was."""
    counts = Counts("bodies")
    repository = models.make_repository(folder / "repository", served)
    with running(repository, folder / "output", counts, *OPTIONS) as family:
        ports = ports_of(family.server)
        asyncio.run(fuzz_bodies(ports, counts, seed, served, bodies=bodies, seconds=seconds))
        check_calm(family.server, counts, served)
        check_log(family.server, counts)
    return counts


def harmed(
    folder: Path,
    budget: Budget,
    seed: int,
    appetite: Appetite,
    served: tuple[str, ...] = models.MODELS,
    *,
    part: str,
    zero: tuple[str, ...] = NEVER,
    options: tuple[str, ...] = (),
) -> Counts:
    """Processes are killed and stopped: nobody gets a wrong answer or waits for ever, and all comes back.

    zero: what may not be. options: of the server, besides the usual ones.
    """
    counts, chosen = Counts(part, zero), Random(seed)
    repository = models.make_repository(folder / "repository", served)

    async def run() -> None:
        clients = Clients(Ports(0, 0), counts, seed, served)
        left = budget
        async with clients.asking(CONNECTIONS):
            for life in itertools.count(1):
                began_s = time.monotonic()
                start = running(repository, folder / f"output-{life}", counts, *OPTIONS, *options)
                if await _life(start, clients, left, appetite, chosen):
                    return
                left = Budget(left.seconds - (time.monotonic() - began_s), left.verified, left.harms)

    asyncio.run(run())
    return counts


def ended(folder: Path, rounds: int, seed: int, served: tuple[str, ...]) -> Counts:
    """SIGTERM under the load of clients that keep their connections: what is sent in the grace time is answered."""
    counts = Counts("ended under load")
    repository = models.make_repository(folder / "repository", served)
    for number in range(rounds):
        options = (*OPTIONS, "--drain-grace", str(_GRACE_S))
        with serving(repository, folder / f"output-{number}", *options, grpc=True) as server:
            server.wait_until("/v2/health/ready", 200)
            asyncio.run(_end_under_load(server, Clients(ports_of(server), counts, seed + number, served)))
    return counts


async def _end_under_load(server: ServerProcess, clients: Clients) -> None:
    goal = clients.counts.verified + _BEFORE_THE_END
    async with clients.asking(2 * CONNECTIONS):
        await clients.until(lambda: clients.counts.verified >= goal, _STILL_LIMIT_S)
        clients.due_until_s = time.monotonic() + _GRACE_S
        await asyncio.to_thread(end, server, clients.counts)


async def _life(
    start: AbstractContextManager[Family],
    clients: Clients,
    budget: Budget,
    appetite: Appetite,
    chosen: Random,
) -> bool:
    """One server, until the budget is spent (True) or its supervisor is killed (False)."""
    counts = clients.counts
    with contextlib.ExitStack() as stack:
        # In a thread, as all that blocks: the clients' answers come in meanwhile.
        family = await asyncio.to_thread(stack.enter_context, start)
        server = family.server
        clients.ports = ports_of(server)
        making = asyncio.create_task(trouble(family, appetite, counts, chosen))
        spending = asyncio.create_task(budget.spend(clients))
        await asyncio.wait((making, spending), return_when=asyncio.FIRST_COMPLETED)
        killed = making.done() and making.result()
        for task in (making, spending):
            task.cancel()
        await asyncio.gather(making, spending, return_exceptions=True)
        if killed:
            await asyncio.to_thread(_check_gone, family.seen, counts)
            return False
        await clients.stop()
        await asyncio.to_thread(check_calm, server, counts, clients.served)
        return True


def _check_gone(pids: list[int], counts: Counts) -> None:
    try:
        wait_gone(pids)
    except AssertionError as error:
        counts.add("broken_promises", f"after the supervisor was killed: {error}")
