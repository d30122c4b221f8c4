"""Clients that ask without a pause and compare every answer with their own input, among clients that misbehave.

Each client has one connection at a time. What it asks is drawn by luck: mostly good requests in any encoding and on
both paths through the server, and rows of NaN, requests that cannot be read, requests on which the model raises,
deadlines of some milliseconds, and clients that leave before their answer.
"""

import asyncio
import contextlib
import itertools
import json
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from random import Random
from typing import Final

import numpy as np

from tests.torture import models
from tests.torture.counts import Counts
from tests.torture.models import JSON, Request, Wanted, numbers_in
from tests.torture.wire import ANSWER_LIMIT_S, Answer, Wire

_REMEMBERED: Final = 20_000
"""Answers that are remembered, to tell another request's answer from a wrong one."""
_LEAVE_WITHIN_S: Final = 0.005
_RECONNECT_S: Final = 0.02


class Recent:
    """Which request must get which numbers, of those that were asked lately."""

    def __init__(self) -> None:
        self._ids: OrderedDict[bytes, str] = OrderedDict()

    def remember(self, y: np.ndarray, request_id: str) -> None:
        """This request must get y."""
        self._ids[_key(y)] = request_id
        if len(self._ids) > _REMEMBERED:
            self._ids.popitem(last=False)

    def whose(self, y: np.ndarray) -> str | None:
        """The request that must get y, if it was asked lately."""
        return self._ids.get(_key(y))


def _key(y: np.ndarray) -> bytes:
    return str(y.shape).encode() + y.tobytes()


class Clients:
    """So many clients of one server; `port` may change when another server takes its place.

    served: the models to ask. misbehave: whether bad requests, deadlines and leaving clients are among them.
    """

    def __init__(
        self,
        port: int,
        counts: Counts,
        seed: int,
        served: tuple[str, ...] = models.MODELS,
        *,
        misbehave: bool = True,
    ) -> None:
        self.port = port
        self.counts = counts
        self.served = served
        self.due_until_s = float("inf")
        """CLOCK_MONOTONIC: until then every request must get an answer; afterwards those on a connection that was used
        before, for whoever was answered and not told that the connection ends may use it again."""
        self._misbehave = misbehave
        self._seed = seed
        self._numbers = itertools.count(1000)
        self.recent = Recent()
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    @contextlib.asynccontextmanager
    async def asking(self, connections: int) -> AsyncIterator[None]:
        """They ask meanwhile."""
        luck = [Random(self._seed * 1000 + i) for i in range(connections)]
        self._tasks = [asyncio.create_task(self._ask_on(chosen)) for chosen in luck]
        try:
            yield
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Ask nothing more; afterwards the answers that are due have come, or are counted as hung."""
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def until(self, condition: Callable[[], bool], limit_s: float) -> None:
        """Let them ask until something is so. A server on which it never gets so breaks a promise."""
        until_s = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > until_s:
                self.counts.add("broken_promises", f"the load stands still: {self.counts.line()}")
                return
            await asyncio.sleep(0.02)  # between two looks

    async def _ask_on(self, chosen: Random) -> None:
        wire: Wire | None = None
        while not self._stopping:
            try:
                if wire is None:
                    wire = await Wire.open(self.port)
            except OSError:
                await asyncio.sleep(_RECONNECT_S)  # nobody listens: a server is being started
                continue
            wire = await self._ask(wire, chosen)
        if wire is not None:
            wire.close()

    async def _ask(self, wire: Wire, chosen: Random) -> Wire | None:
        """One request. Returns: the connection, if it can be used again."""
        number = next(self._numbers)
        request_id = f"torture-{number}"
        request, leaves = self._draw(number, chosen)
        counts = self.counts
        counts.requests += 1
        if request.y is not None:
            self.recent.remember(request.y, request_id)
        message = request.message(request_id, long_way=chosen.random() < 0.25, chunked=chosen.random() < 0.1)
        began_s = time.monotonic()
        try:
            if leaves:
                wire.send(message if chosen.random() < 0.8 else message[: chosen.randrange(len(message))])
                await asyncio.sleep(chosen.random() * _LEAVE_WITHIN_S)  # the moment of leaving
                wire.close()
                counts.cancelled += 1
                return None
            wire.send(message)
            async with asyncio.timeout(ANSWER_LIMIT_S):
                answer = await wire.answer()
        except TimeoutError:
            counts.add("hung", f"{request.model} {request.wanted}: no answer in {ANSWER_LIMIT_S:g} s")
            wire.close()
            return None
        except (OSError, EOFError) as error:
            if began_s < self.due_until_s or wire.used:
                counts.add("broken", f"{request.model} {request.wanted.name}: {type(error).__name__} {error}")
            wire.close()
            return None
        counts.answered_in(time.monotonic() - began_s)
        self.judge(request, request_id, answer)
        if answer.headers.get("connection") == "close":
            wire.close()
            return None
        return wire

    def _draw(self, number: int, chosen: Random) -> tuple[Request, bool]:
        """A request, and whether its client leaves before the answer."""
        model, luck = chosen.choice(self.served), chosen.random()
        if not self._misbehave or luck < 0.7:
            return models.good(model, number, chosen), False
        if luck < 0.75 and "linear" in self.served:
            return models.with_nan(number, chosen), False
        if luck < 0.83:
            return models.bad(model, number, chosen), False
        if luck < 0.86 and "digits" in self.served:
            return models.guilty(number, chosen), False
        if luck < 0.93:
            late = models.good(model, number, chosen, Wanted.RIGHT_OR_LATE)
            wait = f"x-timeout-ms: {chosen.choice((1, 2, 5, 10, 20))}"
            return replace(late, headers=(*late.headers, wait)), False
        return models.good(model, number, chosen), True

    def judge(self, request: Request, request_id: str, answer: Answer) -> None:
        """Count the answer as what it is."""
        counts, wanted = self.counts, request.wanted
        shown = f"{request.model} wants {wanted.value}; got {answer.status} {answer.body[:160]!r}"
        code = _code(answer)
        if answer.headers.get("x-request-id") != request_id:
            counts.add("swapped", f"asked as {request_id}, answered as {answer.headers.get('x-request-id')}")
        elif answer.status == 200:
            self._compare(request, answer, shown)
        elif (answer.status == 400 and wanted is Wanted.REFUSED) or (
            code == "model_failed" and wanted is Wanted.FAILED
        ):
            counts.right_refusals += 1
        elif answer.status == 504 and wanted is Wanted.RIGHT_OR_LATE:
            counts.deadlines += 1
        elif answer.status == 504:
            counts.add("expired", shown)
        elif answer.status == 503:
            counts.add("unready", shown)
        elif answer.status == 429:
            counts.add("turned_away", shown)
        elif code == "model_crashed":
            counts.add("crashed", shown)
        else:
            counts.add("input_5xx" if answer.status >= 500 else "refused", shown)

    def _compare(self, request: Request, answer: Answer, shown: str) -> None:
        counts, y = self.counts, request.y
        if y is None or request.wanted not in (Wanted.RIGHT, Wanted.RIGHT_OR_LATE):
            counts.add("wrong", shown)
            return
        try:
            got = numbers_in(answer.kind, answer.headers, answer.body, y)
        except (ValueError, KeyError, TypeError) as error:
            counts.add("wrong", f"{error}: {shown}")
            return
        if got.dtype == y.dtype and got.shape == y.shape and np.array_equal(got, y, equal_nan=True):
            counts.verified += 1
            return
        owner = self.recent.whose(got)
        what = f"{request.model}: got {got.shape} {got.ravel()[:6]}, wanted {y.shape} {y.ravel()[:6]}"
        counts.add(
            "wrong" if owner is None else "swapped", what if owner is None else f"{what}, which is {owner}'s"
        )


def _code(answer: Answer) -> str:
    """The stable word of an error."""
    if answer.kind != JSON or answer.status == 200:
        return ""
    with contextlib.suppress(ValueError):
        return str(json.loads(answer.body).get("code", ""))
    return ""
