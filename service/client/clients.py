"""A client for Python programs: arrays in, arrays out, over one pool of connections.

    with Client("http://localhost:8000") as client:
        y = client["mlp"](x)

What a server refuses for now (429, 503) is asked again when it says so, as long as the call has time. No proxy is
asked, whatever the environment says: a model server is named, and mostly near.
"""

import asyncio
import os
import time
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import httpx
import numpy as np

from foldserve.service.client.calls import (
    Call,
    ClientError,
    Prediction,
    ServerRefused,
    ServerUnreachable,
    info_call,
    not_foldserves,
    predict_call,
    read_json,
    read_prediction,
    ready_call,
)

Inputs = np.ndarray | Mapping[str, np.ndarray]
Answer = np.ndarray | dict[str, np.ndarray]
T = TypeVar("T")
Read = Callable[[int, Mapping[str, str], bytes], T]

_UNIX: Final = "unix:"
_MARGIN_S: Final = 5.0
"""The server keeps the time; a socket is given more, so that the 504 of a server that is slow can arrive."""
DEFAULT_TIMEOUT_S: Final = 30.0


class BadUrl(ClientError):
    """The URL is no server's."""


class _Address:
    """Where a server is. Raises: BadUrl."""

    def __init__(self, url: str) -> None:
        self.shown = url
        self.socket: str | None = None
        if url.startswith(_UNIX) and url != _UNIX:
            self.socket, self.base = url.removeprefix(_UNIX), "http://localhost"
            return
        try:
            parts = urllib.parse.urlsplit(url if "//" in url else f"http://{url}")
            host, _ = None if url == _UNIX else parts.hostname, parts.port
        except ValueError:  # a port that is no number, brackets that do not close
            host = None
        if host is None or parts.scheme not in ("http", "https"):
            raise BadUrl(
                f"URL {url!r} is not a server's address; expected one as in http://localhost:8000 or unix:/path"
            )
        self.base = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self.shown = self.base

    def unreachable(self, path: str, error: Exception) -> ServerUnreachable:
        """For a call that got no answer."""
        return ServerUnreachable(
            f"{self.shown}{path} cannot be reached: {error or type(error).__name__}; is the server up?"
        )


def _named(inputs: Inputs | None, named: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inputs by name; the one that has none by "". Raises: TypeError."""
    if (inputs is None) == (not named):
        raise TypeError(
            "expected one array, or every input by its name; give client[model](x) or (a=..., b=...)"
        )
    if inputs is None:
        return {name: np.asarray(value) for name, value in named.items()}
    if isinstance(inputs, Mapping):
        return {name: np.asarray(value) for name, value in inputs.items()}
    return {"": np.asarray(inputs)}


def _metadata(info: object, model: str) -> dict[str, Any]:
    """What /info says of a model. Raises: ClientError."""
    try:
        models = {one["name"]: one for one in info["models"]}  # type: ignore[index]
    except (KeyError, TypeError) as error:
        raise not_foldserves(error) from None
    if model not in models:
        raise ClientError(f"model {model!r} is not served; expected one of {', '.join(sorted(models))}")
    found: dict[str, Any] = models[model]
    return found


class _Deadline:
    """When the time of a call is over."""

    def __init__(self, timeout_s: float) -> None:
        self._until_s = time.monotonic() + timeout_s

    def left_s(self) -> float:
        """Seconds; a little where none are left, so that the server tells."""
        return max(0.001, self._until_s - time.monotonic())

    def pause_s(self, error: ServerRefused) -> float:
        """How long to wait before another try. Raises: the error, when there is none or no time for one."""
        if error.retry_after_s is None or error.retry_after_s >= self._until_s - time.monotonic():
            raise error
        return error.retry_after_s


class _Asking:
    """What both clients have: where the server is, and connections of the process that asks."""

    def __init__(self, url: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._address = _Address(url)
        self.timeout_s = timeout_s
        self._pid = os.getpid()
        self._renew()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._address.shown!r})"

    def _renew(self) -> None:
        """Open a pool of connections."""
        raise NotImplementedError

    def _arguments(self, call: Call, timeout_s: float) -> dict[str, Any]:
        """A call as httpx takes it."""
        if self._pid != os.getpid():  # of connections that a fork copied, another process reads the answers
            self._pid = os.getpid()
            self._renew()
        return {
            "method": call.method,
            "url": self._address.base + call.path,
            "headers": dict(call.headers),
            "content": call.body,
            "timeout": timeout_s + _MARGIN_S,
        }


class Client(_Asking):
    """A server, asked from ordinary code; safe to use from several threads, and in processes forked from its own.

    Args:
        url: as in "http://localhost:8000" or "unix:/run/foldserve.sock".
        timeout_s: the most that a call takes, tries included; a call may say another.
    Raises: BadUrl. Every call raises ServerRefused for an answer that is an error, ServerUnreachable without one, and
        other ClientErrors for what is not foldserve\'s.
    """

    def __getitem__(self, model: str) -> "Model":
        return Model(self, model)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End its connections."""
        self._http.close()

    def predict(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: str | None = None,
        output: str | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Run a model. inputs: rows of its one input, or every input by name. Returns: its one output, or all by
        name."""
        return self.prediction(model, inputs, version=version, output=output, timeout_s=timeout_s).value()

    def prediction(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: str | None = None,
        output: str | None = None,
        timeout_s: float | None = None,
    ) -> Prediction:
        """The same, with every output by name and the server\'s timing."""
        arrays = _named(inputs, {})
        return self._ask(
            lambda left_s: predict_call(model, arrays, version, output, left_s), read_prediction, timeout_s
        )

    def info(self) -> object:
        """What the server says of itself: the JSON of /info."""
        return self._ask(lambda _: info_call(), read_json, None)

    def metadata(self, model: str) -> dict[str, Any]:
        """What the server says of a model: versions, inputs and outputs, manifests."""
        return _metadata(self.info(), model)

    def ready(self) -> bool:
        """Whether the server is up, and every model ready."""
        try:
            status, _, _ = self._send(ready_call(), self.timeout_s)
        except ServerUnreachable:
            return False
        return status == 200

    def _ask(self, call: Callable[[float], Call], read: Read[T], timeout_s: float | None) -> T:
        deadline = _Deadline(self.timeout_s if timeout_s is None else timeout_s)
        while True:
            left_s = deadline.left_s()
            try:
                return read(*self._send(call(left_s), left_s))
            except ServerRefused as error:
                time.sleep(deadline.pause_s(error))

    def _renew(self) -> None:
        transport = httpx.HTTPTransport(uds=self._address.socket)
        self._http = httpx.Client(transport=transport, trust_env=False)

    def _send(self, call: Call, timeout_s: float) -> tuple[int, Mapping[str, str], bytes]:
        arguments = self._arguments(call, timeout_s)
        try:
            response = self._http.request(**arguments)
        except httpx.HTTPError as error:
            raise self._address.unreachable(call.path, error) from None
        return response.status_code, response.headers, response.content


class Model:
    """One model of a client: call it with an array, or with every input by its name."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self.name = name

    def __call__(
        self, inputs: Inputs | None = None, /, *, timeout_s: float | None = None, **named: np.ndarray
    ) -> Answer:
        return self._client.predict(self.name, _named(inputs, named), timeout_s=timeout_s)

    def __repr__(self) -> str:
        return f"{self._client!r}[{self.name!r}]"


class AsyncClient(_Asking):
    """A server, asked from coroutines of one event loop; otherwise as Client."""

    def __getitem__(self, model: str) -> "AsyncModel":
        return AsyncModel(self, model)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End its connections."""
        await self._http.aclose()

    async def predict(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: str | None = None,
        output: str | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """See Client."""
        arrays = _named(inputs, {})
        prediction = await self._ask(
            lambda left_s: predict_call(model, arrays, version, output, left_s), read_prediction, timeout_s
        )
        return prediction.value()

    async def info(self) -> object:
        """See Client."""
        return await self._ask(lambda _: info_call(), read_json, None)

    async def metadata(self, model: str) -> dict[str, Any]:
        """See Client."""
        return _metadata(await self.info(), model)

    async def ready(self) -> bool:
        """See Client."""
        try:
            status, _, _ = await self._send(ready_call(), self.timeout_s)
        except ServerUnreachable:
            return False
        return status == 200

    async def _ask(self, call: Callable[[float], Call], read: Read[T], timeout_s: float | None) -> T:
        deadline = _Deadline(self.timeout_s if timeout_s is None else timeout_s)
        while True:
            left_s = deadline.left_s()
            try:
                return read(*await self._send(call(left_s), left_s))
            except ServerRefused as error:
                await asyncio.sleep(deadline.pause_s(error))

    def _renew(self) -> None:
        transport = httpx.AsyncHTTPTransport(uds=self._address.socket)
        self._http = httpx.AsyncClient(transport=transport, trust_env=False)

    async def _send(self, call: Call, timeout_s: float) -> tuple[int, Mapping[str, str], bytes]:
        arguments = self._arguments(call, timeout_s)
        try:
            response = await self._http.request(**arguments)
        except httpx.HTTPError as error:
            raise self._address.unreachable(call.path, error) from None
        return response.status_code, response.headers, response.content


class AsyncModel:
    """See Model."""

    def __init__(self, client: AsyncClient, name: str) -> None:
        self._client = client
        self.name = name

    async def __call__(
        self, inputs: Inputs | None = None, /, *, timeout_s: float | None = None, **named: np.ndarray
    ) -> Answer:
        return await self._client.predict(self.name, _named(inputs, named), timeout_s=timeout_s)

    def __repr__(self) -> str:
        return f"{self._client!r}[{self.name!r}]"
