"""Clients that ask without a pause and compare every answer with their own input, among clients that misbehave.

Each client has one connection at a time, of HTTP or gRPC. What it asks is drawn by luck: mostly good requests in any
protocol that its connection carries, over HTTP on both paths through the server, and rows of NaN, requests that cannot
be read, requests on which the model raises, deadlines of some milliseconds, and clients that leave before their answer.
All ask the same models, so the rows of all protocols share batches.
"""

import asyncio
import contextlib
import itertools
import json
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Final

import numpy as np
from google.protobuf.message import DecodeError

from tests.torture import models
from tests.torture.counts import Counts
from tests.torture.links.seam import Link, Ports
from tests.torture.links.table import Open, of_clients
from tests.torture.protocols.seam import Carried, Request, Swapped, Wanted
from tests.torture.wire import ANSWER_LIMIT_S, Answer

_REMEMBERED: Final = 20_000
"""Answers that are remembered, to tell another request's answer from a wrong one."""
_LEAVING: Final = 0.07
"""Of the clients, those that leave before their answer."""
_LEAVE_WITHIN_S: Final = 0.005
_RECONNECT_S: Final = 0.02
_LATE_MS: Final = (1, 2, 5, 10, 20)


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
    """So many clients of one server; `ports` may change when another server takes its place.

    served: the models to ask. misbehave: whether bad requests, deadlines and leaving clients are among them.
    """

    def __init__(
        self,
        ports: Ports,
        counts: Counts,
        seed: int,
        served: tuple[str, ...] = models.MODELS,
        *,
        misbehave: bool = True,
    ) -> None:
        self.ports = ports
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
        opened = zip(luck, of_clients(connections), strict=True)
        self._tasks = [asyncio.create_task(self._ask_on(chosen, opener)) for chosen, opener in opened]
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

    async def _ask_on(self, chosen: Random, opener: Open) -> None:
        link: Link | None = None
        while not self._stopping:
            try:
                if link is None:
                    link = await opener(self.ports)
            except OSError:
                await asyncio.sleep(_RECONNECT_S)  # nobody listens: a server is being started
                continue
            if not await self._ask(link, chosen):
                await link.close()
                link = None
        if link is not None:
            await link.close()

    async def _ask(self, link: Link, chosen: Random) -> bool:
        """As many requests as are put at once on such a link. Returns: whether it can be used again."""
        began_s = time.monotonic()
        if self._misbehave and chosen.random() < _LEAVING:
            return await self._leave(link, chosen)
        requests = [self._drawn(link.carried, chosen) for _ in range(chosen.randint(1, link.depth))]
        waiting, sent_s = list(requests), None
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                for request in requests:
                    await link.send(request, chosen)
                sent_s = time.monotonic()
                while waiting:
                    answer = await link.answer()
                    self.counts.answered_in(time.monotonic() - began_s)
                    self.judge(waiting.pop(0), answer)
        except TimeoutError:
            for request in waiting:
                self.counts.add("hung", f"{_shown(request)}: no answer in {ANSWER_LIMIT_S:g} s")
            return False
        except (OSError, EOFError) as error:
            if (sent_s or time.monotonic()) < self.due_until_s - link.slow_s or link.owes:
                for request in waiting:
                    self.counts.add("broken", f"{_shown(request)}: {type(error).__name__} {error}")
            return False
        return answer.headers.get("connection") != "close"

    async def _leave(self, link: Link, chosen: Random) -> bool:
        request = models.good(chosen.choice(self.served), next(self._numbers), chosen, link.carried)
        self._note(request)
        try:
            useful = await link.leave(request, chosen, chosen.random() * _LEAVE_WITHIN_S)
        except (OSError, EOFError):
            return False  # whoever leaves is owed nothing
        self.counts.cancelled += 1
        return useful

    def _drawn(self, carried: Carried, chosen: Random) -> Request:
        """A request, good or bad."""
        request = self._by_luck(next(self._numbers), carried, chosen)
        self._note(request)
        return request

    def _note(self, request: Request) -> None:
        self.counts.requests += 1
        if request.asked.y is not None:
            self.recent.remember(request.asked.y, request.asked.request_id)

    def _by_luck(self, number: int, carried: Carried, chosen: Random) -> Request:
        model, luck = chosen.choice(self.served), chosen.random()
        if not self._misbehave or luck < 0.77:
            return models.good(model, number, chosen, carried)
        if luck < 0.82 and "linear" in self.served:
            return models.with_nan(number, chosen, carried)
        if luck < 0.9:
            return models.bad(model, number, chosen, carried)
        if luck < 0.93 and "digits" in self.served:
            return models.guilty(number, chosen, carried)
        return models.good(model, number, chosen, carried, chosen.choice(_LATE_MS))

    def judge(self, request: Request, answer: Answer) -> None:
        """Count the answer as what it is."""
        counts, wanted, request_id = self.counts, request.asked.wanted, request.asked.request_id
        shown = f"{_shown(request)}; got {answer.status} {answer.body[:160]!r}"
        code = code_of(answer)
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
        counts, y = self.counts, request.asked.y
        if y is None or request.asked.wanted not in (Wanted.RIGHT, Wanted.RIGHT_OR_LATE):
            counts.add("wrong", shown)
            return
        try:
            got = request.read(answer, y)
        except Swapped as swapped:
            counts.add("swapped", f"{swapped}: {shown}")
            return
        except (ValueError, KeyError, TypeError, DecodeError) as error:
            counts.add("wrong", f"{error}: {shown}")
            return
        if got.dtype == y.dtype and got.shape == y.shape and np.array_equal(got, y, equal_nan=True):
            counts.verified += 1
            counts.by_protocol[request.protocol] += 1
            return
        owner = self.recent.whose(got)
        what = f"{_shown(request)}: got {got.shape} {got.ravel()[:6]}, wanted {y.shape} {y.ravel()[:6]}"
        counts.add(
            "wrong" if owner is None else "swapped", what if owner is None else f"{what}, which is {owner}'s"
        )


def _shown(request: Request) -> str:
    return f"{request.protocol} to {request.asked.model} wants {request.asked.wanted.value}"


def code_of(answer: Answer) -> str:
    """The stable word of an error; none where there is none."""
    if answer.status == 200 or "code" in answer.headers:
        return answer.headers.get("code", "")
    with contextlib.suppress(ValueError):
        return str(json.loads(answer.body).get("code", ""))
    return ""
