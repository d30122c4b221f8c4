"""The connections of an AsyncClient: aiohttp's, those of each event loop its own."""

import asyncio
import http.client
import io
import ssl
import weakref
from collections.abc import AsyncGenerator
from typing import Final

import aiohttp
import yarl

from foldserve.service.client.address import Address
from foldserve.service.client.answers import Answer
from foldserve.service.client.calls import Call
from foldserve.service.client.connections import closed, unreachable
from foldserve.service.client.deadline import TimeOver

_MOST: Final = 64
"""Connections; calls beyond that wait for one, within their time."""
_AT_ONCE_BYTES: Final = 2**20
"""Of a body, that aiohttp writes in one piece; more goes from a file, so that the loop turns in between."""


class AsyncConnections:
    """Made on the event loop that asks, and ended with it: a client outlives an asyncio.run()."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._kept: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, tuple[aiohttp.ClientSession, AsyncGenerator[None, None]]
        ] = weakref.WeakKeyDictionary()
        self._closed = False

    async def send(self, call: Call, timeout_s: float) -> Answer:
        """Send once; aiohttp sends a GET once more on its own. Raises: ServerUnreachable, TimeOver."""
        session = await self._session()
        url = yarl.URL(self._address.base + call.path, encoded=True)
        body = call.body
        data = io.BytesIO(body) if body is not None and len(body) > _AT_ONCE_BYTES else body
        headers = {**self._address.headers, **call.headers}
        try:
            async with (
                asyncio.timeout(timeout_s),
                session.request(
                    call.method, url, data=data, headers=headers, allow_redirects=False
                ) as response,
            ):
                return Answer(response.status, response.headers, await response.read())
        except TimeoutError:
            raise TimeOver from None
        except (aiohttp.ClientError, OSError) as error:
            raise unreachable(self._address, call, _cause(error)) from None

    async def close(self) -> None:
        """End those of this event loop; none is made any more."""
        self._closed = True
        kept = self._kept.pop(asyncio.get_running_loop(), None)
        if kept is not None:
            await kept[1].aclose()

    async def _session(self) -> aiohttp.ClientSession:
        if self._closed:
            raise closed(self._address)
        loop = asyncio.get_running_loop()
        kept = self._kept.get(loop)
        if kept is None:
            session = aiohttp.ClientSession(
                connector=_connector(self._address),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            )
            # A loop ends the generators that were begun on it before it closes: so the session ends in time.
            holder = _held(session)
            kept = self._kept[loop] = session, holder
            await anext(holder)
        return kept[0]


async def _held(session: aiohttp.ClientSession) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await session.close()


def _connector(address: Address) -> aiohttp.BaseConnector:
    if address.socket is not None:
        return aiohttp.UnixConnector(path=address.socket, limit=_MOST)
    return aiohttp.TCPConnector(limit=_MOST, ssl=address.tls or True)


def _cause(error: BaseException) -> BaseException:
    """What the system, TLS or http.client says, where aiohttp has put it into words of its own."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return http.client.RemoteDisconnected("the server ended the connection without an answer")
    if isinstance(error, aiohttp.ClientResponseError):
        return http.client.BadStatusLine(error.message)
    inner = error.__cause__
    return inner if isinstance(inner, ssl.SSLError | OSError) else error
