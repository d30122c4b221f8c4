"""What carries the requests of one client to the server: HTTP, gRPC, or a stream of gRPC."""

from dataclasses import dataclass
from random import Random
from typing import Protocol

from tests.torture.protocols.seam import Carried, Request
from tests.torture.wire import Answer


@dataclass(frozen=True)
class Ports:
    """Where a server listens."""

    http: int
    grpc: int


class Link(Protocol):
    """carried: which requests it takes. depth: how many at once. owes: whether whoever was answered on it and not told
    that it ends may rely on it. slow_s: in which a request may be sent and not yet be with the server.
    """

    carried: Carried
    depth: int
    slow_s: float

    @property
    def owes(self) -> bool: ...

    async def send(self, request: Request, chosen: Random) -> None:
        """Put a request on its way. Raises: OSError, EOFError."""
        ...

    async def answer(self) -> Answer:
        """That to the first request which has none yet. Raises: OSError, EOFError when there will be none."""
        ...

    async def leave(self, request: Request, chosen: Random, seconds: float) -> bool:
        """Put a request on its way, or a part of it, and let it alone after so long. Returns: whether this link is of
        further use."""
        ...

    async def close(self) -> None:
        """Leave, whatever is under way."""
        ...
