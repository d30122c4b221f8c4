"""Sends what is greedy, one after another, from a thread beside the clients of asking.py."""

import threading
import time
from collections.abc import Sequence
from random import Random
from typing import Final, Protocol

from tests.torture.counts import Counts
from tests.torture.greedy.grpc_hogs import grpc_hogs
from tests.torture.greedy.http_hogs import hogs
from tests.torture.links.seam import Ports

_BETWEEN_S: Final = 0.05


class Greedy(Protocol):
    """What one client does to have a server for itself."""

    @property
    def name(self) -> str: ...

    def send(self, ports: Ports, counts: Counts, done: threading.Event) -> None:
        """Do it, and judge what comes back. done: when it is set, nobody stays any longer than needed."""
        ...


def all_kinds() -> tuple[Greedy, ...]:
    """Of HTTP and gRPC."""
    return (*hogs(), *grpc_hogs())


class Hogs:
    """`with Hogs(ports, counts, seed, chosen):` sends them meanwhile, in an order by luck, again and again."""

    def __init__(self, ports: Ports, counts: Counts, seed: int, chosen: Sequence[Greedy]) -> None:
        self._ports, self._counts = ports, counts
        self._hogs = chosen
        self._random = Random(seed)
        self.rounds = 0
        """How often all of them were sent."""
        self.sent: list[tuple[str, float, float]] = []
        """Which, from when to when, CLOCK_MONOTONIC."""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Hogs":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Send nothing more; afterwards the last one has its answer."""
        self._done.set()
        self._thread.join()

    def beside(self, from_s: float, to_s: float) -> list[str]:
        """Which were under way in this time."""
        return [name for name, began_s, ended_s in self.sent if began_s < to_s and ended_s > from_s]

    def _run(self) -> None:
        while not self._done.wait(_BETWEEN_S):
            for hog in self._random.sample(self._hogs, len(self._hogs)):
                if self._done.wait(_BETWEEN_S):
                    return
                began_s = time.monotonic()
                hog.send(self._ports, self._counts, self._done)
                self.sent.append((hog.name, began_s, time.monotonic()))
            self.rounds += 1
