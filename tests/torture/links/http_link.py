"""A connection of HTTP/1.1."""

import asyncio
from random import Random

from tests.torture.links.seam import Ports
from tests.torture.protocols.seam import Carried, Request
from tests.torture.wire import Answer, Wire


class HttpLink:
    """Implements Link."""

    carried = Carried.HTTP
    depth = 1
    slow_s = 0.0

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    @classmethod
    async def open(cls, ports: Ports) -> "HttpLink":
        """Raises: OSError when nobody listens."""
        return cls(await Wire.open(ports.http))

    @property
    def owes(self) -> bool:
        return self._wire.used

    async def send(self, request: Request, chosen: Random) -> None:
        self._wire.send(_drawn(request, chosen))

    async def answer(self) -> Answer:
        return await self._wire.answer()

    async def leave(self, request: Request, chosen: Random, seconds: float) -> bool:
        whole = _drawn(request, chosen)
        self._wire.send(whole if chosen.random() < 0.8 else whole[: chosen.randrange(len(whole))])
        await asyncio.sleep(seconds)  # the moment of leaving
        return False

    async def close(self) -> None:
        self._wire.close()


def _drawn(request: Request, chosen: Random) -> bytes:
    return message(request, long_way=chosen.random() < 0.25, chunked=chosen.random() < 0.1)


def message(request: Request, *, long_way: bool = False, chunked: bool = False) -> bytes:
    """A request as it goes over the wire. long_way: with a header that only the ASGI application knows."""
    lines = [f"POST {request.path} HTTP/1.1", "host: x", f"x-request-id: {request.asked.request_id}"]
    lines += request.headers
    if request.kind:
        lines.append(f"content-type: {request.kind}")
    if long_way:
        lines.append("trailer: none")
    body = request.body
    if chunked:
        lines.append("transfer-encoding: chunked")
        half = len(body) // 2
        parts = [part for part in (body[:half], body[half:]) if part]
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    else:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body
