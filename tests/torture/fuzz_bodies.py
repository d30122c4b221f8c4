"""Mutated bodies and messages of every protocol, on connections that are kept: each is answered, and none faulted.

What carries the body is right, so that it comes to whoever reads it; fuzz_wire.py is for what carries it. The answer
to a body that was not changed is compared with what it must be.
"""

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Final

from tests.torture import models
from tests.torture.asking import Clients, code_of
from tests.torture.counts import Counts
from tests.torture.links.grpc_links import CallLink, StreamLink
from tests.torture.links.http_link import HttpLink
from tests.torture.links.seam import Link, Ports
from tests.torture.links.table import Open
from tests.torture.mutations import mutated
from tests.torture.protocols.seam import Carried, Request
from tests.torture.protocols.table import PROTOCOLS
from tests.torture.wire import ANSWER_LIMIT_S

_SEEDS: Final = 12
"""Of each protocol and model."""
_ASKED_FOR: Final = frozenset(("model_failed", "deadline_passed"))
"""Codes of 5xx that a request can ask for: numbers on which the model fails, a time that is too short."""
_OPENERS: Final[tuple[tuple[Open, int], ...]] = ((HttpLink.open, 4), (CallLink.open, 2), (StreamLink.open, 2))
"""So many connections of each kind."""

Seeds = dict[str, list[Request]]
"""By protocol, good requests of it."""


async def fuzz_bodies(
    ports: Ports, counts: Counts, seed: int, served: tuple[str, ...], *, bodies: int = 0, seconds: float = 0.0
) -> None:
    """So many, and for so long."""
    until_s = time.monotonic() + seconds
    fuzzer = _Fuzzer(ports, counts, seed, served)

    def more() -> bool:
        return counts.requests < bodies or time.monotonic() < until_s

    openers = [opener for opener, count in _OPENERS for _ in range(count)]
    await asyncio.gather(
        *(fuzzer.send_on(opener, Random(seed * 100 + i), more) for i, opener in enumerate(openers))
    )


class _Fuzzer:
    """Of one server."""

    def __init__(self, ports: Ports, counts: Counts, seed: int, served: tuple[str, ...]) -> None:
        self._ports, self._counts = ports, counts
        self._judge = Clients(ports, counts, seed, served)
        self._seeds = {carried: seeds_of(carried, served, Random(seed)) for carried in Carried}

    async def send_on(self, opener: Open, chosen: Random, more: Callable[[], bool]) -> None:
        """Bodies on one connection, or on another where the server has ended it."""
        link: Link | None = None
        while more():
            if link is None:
                link = await opener(self._ports)
            if not await self._send(link, chosen):
                await link.close()
                link = None
        if link is not None:
            await link.close()

    async def _send(self, link: Link, chosen: Random) -> bool:
        """Returns: whether the connection can be used again."""
        seeds = self._seeds[link.carried]
        protocol = chosen.choice([one for one in PROTOCOLS if one.name in seeds])
        whole = chosen.choice(seeds[protocol.name])
        others = [one.body for one in seeds[protocol.name]]
        body = mutated([whole.body, whole.body, chosen.choice(others)], protocol.tokens, chosen)
        changed = replace(whole, body=body)
        if link.carried is Carried.HTTP and chosen.random() < 0.15:
            changed = models.compressed(changed, chosen)
            if chosen.random() < 0.5:
                changed = replace(changed, body=mutated([changed.body], protocol.tokens, chosen))
        self._counts.requests += 1
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                await link.send(changed, chosen)
                answer = await link.answer()
        except TimeoutError:
            self._counts.add("hung", f"{protocol.name}: {body[:150]!r}")
            return False
        except (OSError, EOFError) as error:
            self._counts.add("broken", f"{protocol.name}: {error} for {body[:150]!r}")
            return False
        self._counts.answered_in(time.monotonic() - began_s)
        if changed.body == whole.body and changed.headers == whole.headers:
            self._judge.judge(whole, answer)
        elif answer.status == 200:
            self._counts.accepted += 1
        elif answer.status >= 500 and code_of(answer) not in _ASKED_FOR:
            shown = f"{protocol.name}: {answer.status} {answer.body[:120]!r} to {body[:150]!r}"
            self._counts.add("input_5xx", shown)
        elif not answer.body or not 0 < len(answer.body) < 5_000:
            self._counts.add("broken_promises", f"{answer.status} says {answer.body[:100]!r}")
        else:
            self._counts.right_refusals += 1
        return answer.headers.get("connection") != "close"


def seeds_of(carried: Carried, served: tuple[str, ...], chosen: Random) -> Seeds:
    """Good requests of all protocols that are carried so, to every model that can be asked in them."""
    found: Seeds = {}
    for model, protocol in itertools.product(served, PROTOCOLS):
        for number in range(_SEEDS):
            question = models.asked(model, number, chosen, number % 3 + 1)
            if protocol.carried is carried and protocol.takes(question):
                found.setdefault(protocol.name, []).append(protocol.write(question, chosen))
    return found
