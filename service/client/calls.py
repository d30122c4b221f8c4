"""What a client sends and what it makes of the answer. Pure: bytes and arrays, no connections."""

import io
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from tokenize import TokenError
from typing import Final

import numpy as np
import orjson

from foldserve.service.codecs import BodyType
from foldserve.service.codecs.npy_codec import encode as encode_npy

# npy keeps datatype and every bit; a model with several outputs can only answer all of them in JSON.
_ACCEPT: Final = f"{BodyType.NPY.value}, {BodyType.JSON.value};q=0.5"
_AGAIN: Final = (429, 503)
_SOONEST_S: Final = 0.05
"""No server is asked again sooner, also where it says "Retry-After: 0"."""
_MAX_TIMEOUT_MS: Final = 86_400_000
"""The most that a server lets X-Timeout-Ms say; more is as good as no bound."""
_NPY: Final = b"\x93NUMPY"
_UNREADABLE: Final = (
    *(ValueError, KeyError, TypeError, AttributeError),
    *(EOFError, MemoryError, OverflowError, SyntaxError, TokenError),  # numpy's, of files that are none
)


class ClientError(Exception):
    """The request could not be made, or the server refused it."""


class ServerRefused(ClientError):
    """The server answered with an error.

    status: the HTTP status. code: the error's stable word; "" when the answer is not foldserve's. retry_after_s:
    seconds after which it is worth another try; None where it is not.
    """

    def __init__(self, text: str, status: int, code: str, retry_after_s: float | None) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s


class ServerUnreachable(ClientError):
    """No answer came."""


@dataclass(frozen=True)
class Call:
    """One HTTP request, without the address of the server."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes | None = None


@dataclass(frozen=True)
class Prediction:
    """What a model answered. outputs: by name. server_timing: the header that tells where the time went; "" without."""

    outputs: dict[str, np.ndarray]
    server_timing: str

    def value(self) -> np.ndarray | dict[str, np.ndarray]:
        """The one output, or all by name."""
        return next(iter(self.outputs.values())) if len(self.outputs) == 1 else self.outputs


def predict_call(
    model: str, inputs: Mapping[str, np.ndarray], version: str | None, output: str | None, timeout_s: float
) -> Call:
    """A call of /predict. inputs: by name; {"": array} for a model with one input, which goes as a NumPy file."""
    asked = {name: value for name, value in (("version", version), ("output", output)) if value is not None}
    query = f"?{urllib.parse.urlencode(asked)}" if asked else ""
    path = f"/predict/{urllib.parse.quote(model, safe='')}{query}"
    if inputs.keys() == {""}:
        kind, body = BodyType.NPY, encode_npy(np.asarray(inputs[""]))
    else:
        kind = BodyType.JSON
        values = {name: _written(array) for name, array in inputs.items()}
        body = orjson.dumps({"inputs": values}, option=orjson.OPT_SERIALIZE_NUMPY)
    timeout_ms = f"{min(timeout_s * 1000, _MAX_TIMEOUT_MS):.3f}"  # never as 1e+06
    return Call(
        "POST", path, {"Content-Type": kind.value, "Accept": _ACCEPT, "X-Timeout-Ms": timeout_ms}, body
    )


def _written(array: np.ndarray) -> object:
    """An array as orjson takes it: C-contiguous, in the machine's byte order, and no array where it has no dims."""
    if not array.ndim:
        return array.item()
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")


def info_call() -> Call:
    """A call of /info."""
    return Call("GET", "/info", {})


def ready_call() -> Call:
    """A call of /v2/health/ready."""
    return Call("GET", "/v2/health/ready", {})


def read_prediction(status: int, headers: Mapping[str, str], content: bytes) -> Prediction:
    """The answer to predict_call(). Raises: ClientError."""
    if status != 200:
        raise refusal(status, headers, content)
    try:
        if headers.get("content-type", "").partition(";")[0].strip() == BodyType.NPY.value:
            name = urllib.parse.unquote(headers.get("x-tensor-name", "output"))
            if not content.startswith(_NPY):
                raise ValueError("no NumPy file")  # np.load() would also take archives
            outputs = {name: np.load(io.BytesIO(content), allow_pickle=False)}
        else:
            outputs = {name: np.array(value) for name, value in orjson.loads(content)["outputs"].items()}
    except _UNREADABLE as error:
        raise not_foldserves(error) from None
    return Prediction(outputs, headers.get("server-timing", ""))


def read_json(status: int, headers: Mapping[str, str], content: bytes) -> object:
    """The JSON of an answer. Raises: ClientError."""
    if status != 200:
        raise refusal(status, headers, content)
    try:
        return orjson.loads(content)
    except ValueError as error:
        raise not_foldserves(error) from None


def not_foldserves(error: Exception) -> ClientError:
    """For an answer that cannot be read."""
    return ClientError(f"the answer is not foldserve's ({error}); is the URL right?")


def refusal(status: int, headers: Mapping[str, str], content: bytes) -> ServerRefused:
    """What the server says in an answer that is no success."""
    try:
        told = orjson.loads(content)
        text, code = f"{status} {told['code']}: {told['error']}", str(told["code"])
    except (ValueError, KeyError, TypeError):
        text = f"{status}: {content[:200].decode(errors='replace')}; is this a foldserve server?"
        code = ""
    after = headers.get("retry-after", "")
    seconds = max(float(after), _SOONEST_S) if after.isascii() and after.isdigit() else None
    if seconds is None and status in _AGAIN:
        seconds = 1.0
    return ServerRefused(text, status, code, seconds if status in _AGAIN else None)
