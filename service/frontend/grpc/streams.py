"""Calls that wait for their client: streams until it ends them, which the server must be able to end too; and those
that have one message until it has come, which is bounded in time and number.

grpcio's own handlers of one message wait for it for ever, and every call that waits is one of those that may be open.
Some need no key, so that who has none could take them all.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

import grpc

from foldserve.service.errors import BadRequest, DeadlinePassed, Draining

MESSAGE_S: Final = 10.0
"""A message has so long. Clients send it together with the call."""
UNREAD_S: Final = 0.5
"""What has come when the server ends is read and answered within this time, or not any more; as over HTTP."""
MOST_AWAITED: Final = 64
"""Messages that an API server awaits at a time: the oldest gives way to the next, so that silent clients keep nobody
out."""


class Streams:
    """What is done for open streams in one API server."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[None], float] = {}
        """With the seconds that each goes on after end()."""

    def begin(self, work: Coroutine[Any, Any, None], after_end_s: float = 0.0) -> asyncio.Task[None]:
        """Do something until it is done, or so long after end(). Whoever awaits the task cancels it when the call
        ends."""
        task = asyncio.create_task(work)
        self._tasks[task] = after_end_s
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return task

    async def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what is all of a call. Raises: Draining after end(); what the work raises."""
        task = self.begin(work)
        try:
            await asyncio.wait((task,))
        finally:
            task.cancel()
        if task.cancelled():
            raise ended()
        task.result()

    def end(self) -> None:
        """The server ends."""
        loop = asyncio.get_running_loop()
        for task, after_end_s in tuple(self._tasks.items()):
            if after_end_s:
                loop.call_later(after_end_s, task.cancel)
            else:
                task.cancel()


class AwaitedMessages:
    """The one message of each call that is no inference request, in one API server."""

    def __init__(self) -> None:
        self._awaited: dict[asyncio.Timeout, None] = {}  # in the order of their calls

    async def next_of(self, context: Any) -> bytes:
        """The message of a call. Raises: BadRequest, DeadlinePassed."""
        while len(self._awaited) >= MOST_AWAITED:
            oldest = next(iter(self._awaited))
            del self._awaited[oldest]
            oldest.reschedule(asyncio.get_running_loop().time())
        try:
            async with asyncio.timeout(MESSAGE_S) as timeout:
                self._awaited[timeout] = None
                try:
                    message = await context.read()
                finally:
                    self._awaited.pop(timeout, None)
        except TimeoutError:
            raise DeadlinePassed(
                f"the call's message did not come within {MESSAGE_S:g} s, or before {MOST_AWAITED} other calls "
                "without one; send it with the call"
            ) from None
        if message is grpc.aio.EOF:
            raise BadRequest("the call has no message; send one, empty where there is nothing to say")
        return bytes(message)


def ended() -> Draining:
    """What a stream is told that the server ends."""
    return Draining("the server is shutting down; open the stream to another one")
