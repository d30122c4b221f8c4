"""grpc.health.v1.Health: whether the server is ready. Watch tells it at once, and again whenever it changes.

Source: grpc/grpc-proto, grpc/health/v1/health.proto. Readiness is read from memory that the workers write, which wakes
nobody: so it is looked at a few times a second, by one task for all who watch, and not at all while nobody does.
"""

import asyncio
from typing import Any, Final

from foldserve.service.engine.served import Status
from foldserve.service.errors import QueueFull
from foldserve.service.protocols.oip.messages import SERVICES, message

LOOK_S: Final = 0.25
"""Between two looks, and so about the delay of a change."""
MOST_WATCHING: Final = 256
"""Clients that watch one API server at a time; more are refused, so that they cannot take all calls."""
_RESPONSE: Final = message("grpc.health.v1.HealthCheckResponse")


class HealthWatch:
    """Of one API server."""

    def __init__(self, status: Status) -> None:
        self._status = status
        self._watching = 0
        self._looks: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        """Set, and replaced by another, when readiness is not as it was."""

    def status(self, service: str) -> str:
        """The ServingStatus of a service; "" for the server."""
        if service not in ("", *SERVICES):
            return "SERVICE_UNKNOWN"
        return "SERVING" if self._status.ready() else "NOT_SERVING"

    async def watch(self, service: str, context: Any) -> None:
        """Write the service's status, and again when it changes, for as long as the client takes it.

        Raises: QueueFull when too many watch.
        """
        if self._watching >= MOST_WATCHING:
            raise QueueFull(
                f"{self._watching} clients watch this server's health, which is the most; try again later, or call "
                "Check now and then"
            )
        self._watching += 1
        if self._looks is None:
            self._looks = asyncio.create_task(self._look(self._status.ready()))
        told = ""
        try:
            while True:
                changed, now = self._changed, self.status(service)
                if now != told:
                    told = now
                    await context.write(_RESPONSE(status=now).SerializeToString())
                await changed.wait()
        finally:
            self._watching -= 1
            if not self._watching and self._looks is not None:
                self._looks.cancel()
                self._looks = None

    async def _look(self, ready: bool) -> None:
        """See to it that every change is told. ready: as it was before the first of those who watch was told."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self._status.ready() != ready:
                ready = not ready
                changed, self._changed = self._changed, asyncio.Event()
                changed.set()
