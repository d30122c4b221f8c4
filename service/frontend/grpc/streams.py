"""Calls that go on until their client ends them: the server, which ends too, must be able to end them all."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from foldserve.service.errors import Draining


class Streams:
    """What is done for open streams in one API server."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do something until it is done, or end() is called. Whoever awaits the task cancels it when the call ends."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
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
        for task in tuple(self._tasks):
            task.cancel()


def ended() -> Draining:
    """What a stream is told that the server ends."""
    return Draining("the server is shutting down; open the stream to another one")
