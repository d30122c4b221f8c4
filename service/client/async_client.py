"""The same client for coroutines: see client.py.

    async with AsyncClient("http://localhost:8000") as client:
        y = await client["mlp"](x)

A call that is cancelled ends its connection, by which the server knows that nobody waits.
"""

import asyncio
import os
from collections.abc import Sequence
from typing import Any, TypeVar, overload

from foldserve.service.client.address import Address, Certificate
from foldserve.service.client.answers import Answer, Label, Prediction
from foldserve.service.client.async_connections import AsyncConnections
from foldserve.service.client.client import (
    AT_ONCE,
    DEFAULT_RETRIES,
    DEFAULT_TIMEOUT_S,
    DEFAULT_TOP,
    Many,
    Outputs,
)
from foldserve.service.client.deadline import TimeOver
from foldserve.service.client.errors import ClientError
from foldserve.service.client.pictures import PictureSource, is_picture
from foldserve.service.client.requests import How, Requests, Send, Steps, several
from foldserve.service.client.tensors import Inputs, Values, named_inputs

T = TypeVar("T")


class AsyncClient:
    """A server, asked from coroutines; arguments, results and errors as Client's. Outlives an event loop: every loop
    has connections of its own, which end with it."""

    def __init__(
        self,
        url: str,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        *,
        retries: int = DEFAULT_RETRIES,
        key: str | None = None,
        ca: str | os.PathLike[str] | None = None,
        verify: bool = True,
        certificate: Certificate | None = None,
    ) -> None:
        self._address = Address(url, key=key, ca=ca, verify=verify, certificate=certificate)
        self._requests = Requests(timeout_s, retries)
        self._connections = AsyncConnections(self._address)

    def __getitem__(self, model: str) -> "AsyncModel":
        return AsyncModel(self, model)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self._address.shown!r})"

    async def close(self) -> None:
        """End its connections; it can be asked nothing more."""
        await self._connections.close()

    async def predict(
        self,
        model: str,
        inputs: Inputs | PictureSource,
        *,
        version: str | int | None = None,
        outputs: str | Sequence[str] = (),
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> Outputs:
        """See Client."""
        how = How(version, outputs, timeout_s, request_id)
        return (await self._run(self._requests.predict(model, inputs, how))).value()

    async def prediction(
        self,
        model: str,
        inputs: Inputs | PictureSource,
        *,
        version: str | int | None = None,
        outputs: str | Sequence[str] = (),
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> Prediction:
        """See Client."""
        how = How(version, outputs, timeout_s, request_id)
        return await self._run(self._requests.predict(model, inputs, how))

    @overload
    async def classify(
        self,
        model: str,
        what: PictureSource,
        top: int = ...,
        *,
        version: str | int | None = ...,
        output: str | None = ...,
        timeout_s: float | None = ...,
        request_id: str | None = ...,
    ) -> list[Label]: ...

    @overload
    async def classify(
        self,
        model: str,
        what: Many,
        top: int = ...,
        *,
        version: str | int | None = ...,
        output: str | None = ...,
        timeout_s: float | None = ...,
        request_id: str | None = ...,
    ) -> list[list[Label]]: ...

    async def classify(
        self,
        model: str,
        what: PictureSource | Many,
        top: int = DEFAULT_TOP,
        *,
        version: str | int | None = None,
        output: str | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> list[Label] | list[list[Label]]:
        """See Client."""
        how = How(version, output or (), timeout_s, request_id)
        many = several(what)
        if many is None:
            found = await self._run(self._requests.classify(model, what, top, how))
            return found[0] if is_picture(what) else found
        turns = asyncio.Semaphore(AT_ONCE)

        async def labels(one: Any) -> list[Label]:
            async with turns:
                return (await self._run(self._requests.classify(model, one, top, how)))[0]

        asked = [asyncio.ensure_future(labels(one)) for one in many]
        try:
            return await asyncio.gather(*asked)
        finally:
            for one in asked:  # the others, when one has failed
                one.cancel()

    async def info(self) -> Any:
        """See Client."""
        return await self._run(self._requests.info())

    async def metadata(self, model: str, version: str | int | None = None) -> dict[str, Any]:
        """See Client."""
        found: dict[str, Any] = await self._run(self._requests.metadata(model, How(version)))
        return found

    async def ready(self, model: str | None = None) -> bool:
        """See Client."""
        return await self._run(self._requests.ready(model))

    async def _run(self, steps: Steps[T]) -> T:
        """Carry them out."""
        outcome: Answer | Exception | None = None
        try:
            while True:
                step = steps.throw(outcome) if isinstance(outcome, Exception) else steps.send(outcome)
                outcome = None
                if isinstance(step, Send):
                    try:
                        outcome = await self._connections.send(step.call, step.timeout_s)
                    except (ClientError, TimeOver) as error:
                        outcome = error
                else:
                    await asyncio.sleep(step.seconds)
        except StopIteration as end:
            result: T = end.value
            return result


class AsyncModel:
    """See Model."""

    def __init__(self, client: AsyncClient, name: str) -> None:
        self._client = client
        self.name = name

    async def __call__(
        self,
        inputs: Inputs | PictureSource | None = None,
        /,
        *,
        timeout_s: float | None = None,
        **named: Values,
    ) -> Outputs:
        return await self._client.predict(self.name, named_inputs(inputs, named), timeout_s=timeout_s)

    @overload
    async def classify(
        self, what: PictureSource, top: int = ..., *, timeout_s: float | None = ...
    ) -> list[Label]: ...

    @overload
    async def classify(
        self, what: Many, top: int = ..., *, timeout_s: float | None = ...
    ) -> list[list[Label]]: ...

    async def classify(
        self, what: PictureSource | Many, top: int = DEFAULT_TOP, *, timeout_s: float | None = None
    ) -> list[Label] | list[list[Label]]:
        """See Client."""
        return await self._client.classify(self.name, what, top, timeout_s=timeout_s)

    async def metadata(self) -> dict[str, Any]:
        """See Client."""
        return await self._client.metadata(self.name)

    async def ready(self) -> bool:
        """See Client."""
        return await self._client.ready(self.name)

    def __repr__(self) -> str:
        return f"{self._client!r}[{self.name!r}]"
