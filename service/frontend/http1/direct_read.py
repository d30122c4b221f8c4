"""Reads the rest of a large body from the socket straight into the arena.

asyncio gives a protocol new bytes for each read, which then have to be copied. For a body of hundreds of kilobytes that
is more work than the rest of its request. So while such a body arrives and has memory in the arena
(inference/partial_body.py), this protocol replaces the connection's own, and gives the transport that memory to read
into.
"""

import asyncio
from typing import Final, Protocol

from foldserve.service.frontend.http1.exchange import Http1Exchange

DIRECT_READ_BYTES: Final = 32_768
"""Of a smaller rest the copy costs less than the change of protocols."""
_READ_BYTES: Final = 262_144
"""Read in one call at most, as asyncio does: other connections wait that long."""


class DirectReadOwner(Protocol):
    """The connection's own protocol, which hears of everything else."""

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        ...

    def filled(self, own: Http1Exchange, nbytes: int) -> None:
        """So many bytes of its body were read into its memory."""
        ...

    def eof_received(self) -> bool:
        """See asyncio.Protocol."""
        ...

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        ...

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        ...

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        ...


class DirectRead(asyncio.BufferedProtocol):
    """Replaces one connection's protocol from begin() until the body is whole or was moved out of the arena."""

    def __init__(self, transport: asyncio.Transport, protocol: DirectReadOwner) -> None:
        self._transport = transport
        self._protocol = protocol
        self._own: Http1Exchange | None = None
        self._spare: bytearray | None = None
        """Read into when the body was moved out of the arena."""

    def begin(self, own: Http1Exchange) -> None:
        """Read the rest of its body."""
        self._own = own
        self._transport.set_protocol(self)

    def get_buffer(self, sizehint: int) -> memoryview | bytearray:
        """See asyncio.BufferedProtocol."""
        assert self._own is not None
        rest: memoryview | bytearray | None = self._own.rest(_READ_BYTES)
        if rest is None:
            rest = self._spare = bytearray(DIRECT_READ_BYTES)
        return rest

    def buffer_updated(self, nbytes: int) -> None:
        """See asyncio.BufferedProtocol."""
        own, spare = self._own, self._spare
        assert own is not None
        if spare is not None:
            self._end()
            self._protocol.data_received(bytes(spare[:nbytes]))
            return
        self._protocol.filled(own, nbytes)
        if not own.missing:
            self._end()

    def _end(self) -> None:
        self._own = self._spare = None
        self._transport.set_protocol(self._protocol)  # type: ignore[arg-type]

    def eof_received(self) -> bool:
        """See asyncio.Protocol."""
        return self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._protocol.resume_writing()
