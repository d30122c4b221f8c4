"""The calls that register shared memory of clients (system shared memory extension), over REST and, as documents, gRPC.

As Triton has them: a name that is registered already is refused; to unregister one that is not is no error.

Memory of GPUs is not shared with clients. But perf_analyzer and NVIDIA's examples have all regions of both kinds
unregistered before they register any: so it can be asked, and is told, that there are none of CUDA's.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from foldserve.service.codecs.json_diagnostics import kind_of
from foldserve.service.errors import BadJson, BadRequest, NotReady
from foldserve.service.inference.context import RequestContext
from foldserve.service.inference.response import JSON, Response, json_response
from foldserve.service.ipc.shared_regions import SharedRegions
from foldserve.service.protocols.oip.shared_memory import given
from foldserve.service.protocols.openapi import regions as described
from foldserve.service.protocols.routes import Route

_TRIES: Final = 40
_PAUSE_S: Final = 0.005
"""Between tries: another process writes the table, which takes some microseconds unless it is stopped."""
_EXPECTED: Final = 'expected {"key": "/name", "byte_size": bytes}, and "offset" where it does not begin at 0'


@dataclass(frozen=True)
class RegionCalls:
    """Of one API server. regions: None where the server takes none, which every call says then."""

    regions: SharedRegions | None

    def routes(self) -> tuple[Route, ...]:
        """Every call over REST."""
        all_of_them, one = "/v2/systemsharedmemory", "/v2/systemsharedmemory/region/{name}"
        cuda, one_of_cuda = "/v2/cudasharedmemory", "/v2/cudasharedmemory/region/{name}"
        status, off, none = described.STATUS, described.UNREGISTER, described.CUDA_STATUS
        every = (
            ("GET", f"{all_of_them}/status", "The regions of shared memory", self._status, status),
            ("GET", f"{one}/status", "One region of shared memory", self._status, status),
            ("POST", f"{one}/register", "Register shared memory", self._register, described.REGISTER),
            ("POST", f"{one}/unregister", "Unregister shared memory", self._unregister, off),
            ("POST", f"{all_of_them}/unregister", "Unregister all shared memory", self._unregister, off),
            ("GET", f"{cuda}/status", "The regions of CUDA: none", self._cuda_status, none),
            ("GET", f"{one_of_cuda}/status", "One region of CUDA: there is none", self._cuda_status, none),
            ("POST", f"{one_of_cuda}/unregister", "Unregister none of CUDA", self._cuda_unregister, off),
            ("POST", f"{cuda}/unregister", "Unregister none of CUDA", self._cuda_unregister, off),
        )
        return tuple(
            Route(method, path, what, handler, reads_body=method == "POST", operation=said)
            for method, path, what, handler, said in every
        )

    def status(self, name: str | None) -> list[dict[str, Any]]:
        """What is registered: all, or the region of that name. Raises: BadRequest."""
        found = _served(self.regions).registered(name)
        return [
            {"name": one, "key": region.key, "offset": region.offset, "byte_size": region.byte_size}
            for one, region in sorted(found.items())
        ]

    async def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Register a region. Raises: BadRequest, NotReady."""
        regions = _served(self.regions)
        await _when_free(lambda: regions.register(name, key, offset, byte_size))

    async def unregister(self, name: str | None) -> None:
        """Unregister a region, or all. Raises: BadRequest, NotReady."""
        regions = _served(self.regions)
        await _when_free(lambda: regions.unregister(name))

    def cuda_status(self, name: str | None) -> list[dict[str, Any]]:
        """What is registered of CUDA: nothing. Raises: BadRequest."""
        given(self.regions)
        if name is not None:
            raise BadRequest(
                f"region {name[:100]!r} of CUDA is not registered: only system shared memory is served"
            )
        return []

    def cuda_unregister(self) -> None:
        """Unregister what is registered of CUDA, which is nothing. Raises: BadRequest."""
        given(self.regions)

    async def _status(self, context: RequestContext, name: str | None = None) -> Response:
        return json_response(self.status(name))

    async def _register(self, context: RequestContext, body: bytes, name: str) -> Response:
        given(self.regions)
        document = _document(body)
        key = document.get("key")
        if not isinstance(key, str):
            raise BadJson(f'"key" is {kind_of(key)}; {_EXPECTED}')
        await self.register(name, key, _number(document, "offset", 0), _number(document, "byte_size", None))
        return Response(200, b"", JSON)

    async def _unregister(self, context: RequestContext, body: bytes, name: str | None = None) -> Response:
        await self.unregister(name)
        return Response(200, b"", JSON)

    async def _cuda_status(self, context: RequestContext, name: str | None = None) -> Response:
        return json_response(self.cuda_status(name))

    async def _cuda_unregister(
        self, context: RequestContext, body: bytes, name: str | None = None
    ) -> Response:
        self.cuda_unregister()
        return Response(200, b"", JSON)


def _served(regions: SharedRegions | None) -> SharedRegions:
    given(regions)
    assert regions is not None
    return regions


async def _when_free(change: Callable[[], None]) -> None:
    for _ in range(_TRIES):
        try:
            change()
        except NotReady:
            await asyncio.sleep(_PAUSE_S)
        else:
            return
    change()


def _document(body: bytes) -> Mapping[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadJson(f"the body is not JSON ({error}); {_EXPECTED}") from None
    if not isinstance(document, dict):
        raise BadJson(f"the body is {kind_of(document)}; {_EXPECTED}")
    return document


def _number(document: Mapping[str, Any], name: str, default: int | None) -> int:
    value = document.get(name, default)
    if type(value) is not int:
        raise BadRequest(f'"{name}" is {str(value)[:50]!r}; {_EXPECTED}')
    return value
