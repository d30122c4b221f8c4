"""A client for Python programs: arrays and pictures in, arrays and labels out, over a pool of connections.

    with Client("http://localhost:8000") as client:
        y = client["mlp"](x)

No proxy is asked, whatever the environment says: a model server is named, and mostly near.
"""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar, overload

import numpy as np

from foldserve.service.client.address import Address, Certificate
from foldserve.service.client.answers import Answer, Label, Prediction
from foldserve.service.client.connections import Connections
from foldserve.service.client.deadline import TimeOver
from foldserve.service.client.errors import ClientError
from foldserve.service.client.pictures import PictureSource, is_picture
from foldserve.service.client.requests import How, Requests, Send, Steps, several
from foldserve.service.client.tensors import Inputs, Values, named_inputs

DEFAULT_TIMEOUT_S: Final = 30.0
DEFAULT_RETRIES: Final = 3
DEFAULT_TOP: Final = 5
AT_ONCE: Final = 16
"""Pictures of one call that are under way together."""
T = TypeVar("T")
Outputs = np.ndarray | dict[str, np.ndarray]
Many = list[Any] | tuple[Any, ...] | np.ndarray
"""Pictures, or rows."""


class Client:
    """A server, asked from ordinary code; safe to use from several threads, and in processes forked from its own.

    Args:
        url: as in "http://localhost:8000", "https://models.example/base" or "unix:/run/foldserve.sock".
        timeout_s: the most that a call takes, tries and pauses included; a call may say another. The server is told,
            and works on a request no longer.
        retries: how often a call is sent again that got no answer, for want of a connection or because it ended.
        key: an API key.
        ca: a PEM file with the certificates that are trusted; the system's unless given. verify: False trusts any.
        certificate: what the client shows of itself: a PEM file with certificate and key, or the two files.
    Raises: BadUrl, ClientError. Every call raises ClientErrors alone: BadInput, ServerRefused, DeadlinePassed,
        ServerUnreachable, NotFoldserve (errors.py). Between the first and the last byte of an answer timeout_s bounds
        each silence, not the sum.
    """

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
        self._connections = Connections(self._address)

    def __getitem__(self, model: str) -> "Model":
        return Model(self, model)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._address.shown!r})"

    def close(self) -> None:
        """End its connections; it can be asked nothing more."""
        self._connections.close()

    def predict(
        self,
        model: str,
        inputs: Inputs | PictureSource,
        *,
        version: str | int | None = None,
        outputs: str | Sequence[str] = (),
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> Outputs:
        """Run a model.

        Args:
            inputs: rows of its one input; every input by name; or one picture, of a model that takes pictures.
                Numbers and lists take the model's datatype; arrays are sent as they are.
            version: the default one unless given. outputs: which; all unless given.
            request_id: under which the server's log has the request; it makes one unless given.
        Returns: its one output, or a dict of all by name.
        """
        how = How(version, outputs, timeout_s, request_id)
        return self._run(self._requests.predict(model, inputs, how)).value()

    def prediction(
        self,
        model: str,
        inputs: Inputs | PictureSource,
        *,
        version: str | int | None = None,
        outputs: str | Sequence[str] = (),
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> Prediction:
        """The same, with every output by name, the request's id and the server's timing."""
        how = How(version, outputs, timeout_s, request_id)
        return self._run(self._requests.predict(model, inputs, how))

    @overload
    def classify(
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
    def classify(
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

    def classify(
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
        """The `top` largest scores with their labels, the largest first.

        Args:
            what: a picture; several in a list, which are sent together; or rows of the model's one input.
            output: whose scores, of a model with several.
        Returns: the labels of a picture; of several, or of rows, a list for each.
        """
        how = How(version, output or (), timeout_s, request_id)
        many = several(what)
        if many is None:
            found = self._run(self._requests.classify(model, what, top, how))
            return found[0] if is_picture(what) else found

        def labels(one: Any) -> list[Label]:
            return self._run(self._requests.classify(model, one, top, how))[0]

        with ThreadPoolExecutor(min(AT_ONCE, len(many))) as threads:
            return list(threads.map(labels, many))

    def info(self) -> Any:
        """What the server says of itself and of every model: the JSON of /info."""
        return self._run(self._requests.info())

    def metadata(self, model: str, version: str | int | None = None) -> dict[str, Any]:
        """A model's versions, platform, inputs and outputs."""
        found: dict[str, Any] = self._run(self._requests.metadata(model, How(version)))
        return found

    def ready(self, model: str | None = None) -> bool:
        """Whether the server is up and every model ready, or this one. Raises: ServerRefused if there is no such."""
        return self._run(self._requests.ready(model))

    def _run(self, steps: Steps[T]) -> T:
        """Carry them out."""
        outcome: Answer | Exception | None = None
        try:
            while True:
                step = steps.throw(outcome) if isinstance(outcome, Exception) else steps.send(outcome)
                outcome = None
                if isinstance(step, Send):
                    try:
                        outcome = self._connections.send(step.call, step.timeout_s)
                    except (ClientError, TimeOver) as error:
                        outcome = error
                else:
                    time.sleep(step.seconds)
        except StopIteration as end:
            result: T = end.value
            return result


class Model:
    """One model of a client: call it with an array, with every input by its name, or with a picture."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self.name = name

    def __call__(
        self,
        inputs: Inputs | PictureSource | None = None,
        /,
        *,
        timeout_s: float | None = None,
        **named: Values,
    ) -> Outputs:
        return self._client.predict(self.name, named_inputs(inputs, named), timeout_s=timeout_s)

    @overload
    def classify(
        self, what: PictureSource, top: int = ..., *, timeout_s: float | None = ...
    ) -> list[Label]: ...

    @overload
    def classify(self, what: Many, top: int = ..., *, timeout_s: float | None = ...) -> list[list[Label]]: ...

    def classify(
        self, what: PictureSource | Many, top: int = DEFAULT_TOP, *, timeout_s: float | None = None
    ) -> list[Label] | list[list[Label]]:
        """See Client."""
        return self._client.classify(self.name, what, top, timeout_s=timeout_s)

    def metadata(self) -> dict[str, Any]:
        """See Client."""
        return self._client.metadata(self.name)

    def ready(self) -> bool:
        """See Client."""
        return self._client.ready(self.name)

    def __repr__(self) -> str:
        return f"{self._client!r}[{self.name!r}]"
