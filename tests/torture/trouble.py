"""Kills and stops at random moments, of workers, API servers and the supervisor, on one server or one after another."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from tests.e2e.server_process import ServerProcess, alive
from tests.torture.counts import Counts
from tests.torture.family import Family, command_line


@dataclass(frozen=True)
class Appetite:
    """How often each happens, per minute, and to whom: any of "worker", "api server", "supervisor",
    and "helper": whatever other processes the server has.

    stopped_s: how long a stop takes. ended: whether the server may end what stands still for so long.
    """

    kills: dict[str, float]
    stops: dict[str, float]
    stopped_s: tuple[float, float] = (0.1, 3.0)
    ended: bool = False

    def times(self, factor: float) -> "Appetite":
        """The same, so many times as often."""
        kills, stops = (
            {whom: rate * factor for whom, rate in rates.items()} for rates in (self.kills, self.stops)
        )
        return replace(self, kills=kills, stops=stops)


WORKERS: Final = Appetite(kills={"worker": 12.0}, stops={})
"""What costs no request: only workers are killed, now and then all of them at once."""
STOPS: Final = Appetite(kills={}, stops={"worker": 10.0, "api server": 10.0, "supervisor": 6.0})
"""What costs nothing but time."""
LONG_STOPS: Final = Appetite(
    kills={"worker": 4.0}, stops={"worker": 10.0, "api server": 4.0}, stopped_s=(4.0, 8.0), ended=True
)
"""For a server whose run limit is shorter: what stands still is found, and nobody waits for it."""
EVERYTHING: Final = Appetite(
    kills={"worker": 12.0, "helper": 6.0, "api server": 5.0, "supervisor": 1.2},
    stops={"worker": 4.0, "helper": 3.0, "api server": 4.0, "supervisor": 3.0},
)


async def trouble(family: Family, appetite: Appetite, counts: Counts, chosen: Random) -> bool:
    """Make it until cancelled, or until the supervisor was killed. Returns: True then."""
    wishes = [("kill", *wish) for wish in appetite.kills.items()]
    wishes += [("stop", *wish) for wish in appetite.stops.items()]
    per_s = sum(rate for _, _, rate in wishes) / 60.0
    while True:
        await asyncio.sleep(chosen.expovariate(per_s))  # the random moment
        ((what, whom, _),) = chosen.choices(wishes, [rate for _, _, rate in wishes])
        pids = await asyncio.to_thread(_pids, family.server, whom)
        if not pids:
            continue
        if what == "kill":
            together = pids if chosen.random() < 0.1 else [chosen.choice(pids)]
            for pid in together:
                await asyncio.to_thread(family.kill, pid)
            if whom == "supervisor":
                return True
        else:
            counts.stops += 1
            pid = chosen.choice(pids)
            if appetite.ended:
                family.excuse(pid)
            await stopped(pid, chosen.uniform(*appetite.stopped_s))


async def stopped(pid: int, seconds: float) -> None:
    """SIGSTOP, and SIGCONT after so long whatever happens."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)  # how long it stands still
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _pids(server: ServerProcess, whom: str) -> list[int]:
    find: dict[str, Callable[[], list[int]]] = {
        "worker": server.workers,
        "api server": server.api_servers,
        "supervisor": lambda: [server.process.pid],
        "helper": lambda: _helpers(server),
    }
    return alive(find[whom]())


def _helpers(server: ServerProcess) -> list[int]:
    """Neither workers nor API servers nor the supervisor, nor what Python's multiprocessing keeps for itself."""
    known = {server.process.pid, *server.workers(), *server.api_servers()}
    others = [pid for pid in server.processes() if pid not in known]
    return [pid for pid in others if "resource_tracker" not in command_line(pid)]
