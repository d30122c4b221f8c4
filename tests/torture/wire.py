"""One client connection, cheap enough to have many beside the server on two cores. Knows HTTP, not the models."""

import asyncio
from dataclasses import dataclass
from typing import Final

HOST: Final = "127.0.0.1"
ANSWER_LIMIT_S: Final = 60.0
"""Twice a request's own time: whoever has neither answer nor end by then hangs."""
_STREAM_BYTES: Final = 2**20


@dataclass(frozen=True)
class Answer:
    """One answer, header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def kind(self) -> str:
        """Its media type."""
        return self.headers.get("content-type", "").partition(";")[0]


class Wire:
    """`await Wire.open(port)`; close() at the end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.used = False
        """Whether an answer has come on it."""

    @classmethod
    async def open(cls, port: int) -> "Wire":
        """Raises: OSError when nobody listens."""
        return cls(*await asyncio.open_connection(HOST, port, limit=_STREAM_BYTES))

    def send(self, data: bytes) -> None:
        """Write it as soon as the other side reads."""
        self._writer.write(data)

    def half_close(self) -> None:
        """Say that nothing more will come."""
        self._writer.write_eof()

    async def answer(self) -> Answer:
        """The next answer. Raises: EOFError or OSError when the connection ends instead."""
        head = (await self._reader.readuntil(b"\r\n\r\n"))[:-4]
        status, headers = parse_head(head)
        body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        self.used = True
        return Answer(status, headers, body)

    async def rest(self) -> bytes:
        """Everything until the other side closes."""
        return await self._reader.read(-1)

    def close(self) -> None:
        """Leave, whatever is under way."""
        self._writer.close()


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers. Raises: ValueError when it is not the head of an answer."""
    status_line, *lines = head.decode("latin-1").split("\r\n")
    version, _, rest = status_line.partition(" ")
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise ValueError(f"no status line: {status_line[:100]!r}")
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise ValueError(f"no header: {line[:100]!r}")
        headers[name.lower()] = value.strip()
    return int(rest[:3]), headers
