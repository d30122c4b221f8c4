"""What a server's answer says. Pure; raises ClientErrors alone, whatever the bytes are."""

import json
import math
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from foldserve.service.artifact.datatypes import numpy_dtype
from foldserve.service.client.calls import HEAD_LENGTH, RAW
from foldserve.service.client.errors import ClientError, DeadlinePassed, NotFoldserve, ServerRefused
from foldserve.service.errors import ConfigError

_AGAIN: Final = (429, 503)
_SOONEST_S: Final = 0.05
"""No server is asked again sooner, also where it says "Retry-After: 0"."""
_SHOWN_CHARS: Final = 200
_UNREADABLE: Final = (ValueError, LookupError, TypeError, AttributeError, ConfigError, RecursionError)


class Answer(NamedTuple):
    """headers: their names in any case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Label(NamedTuple):
    """A label of a model, and what the model gives it."""

    label: str
    score: float


@dataclass(frozen=True)
class Prediction:
    """What a model answered.

    outputs: by name. request_id: under which the server's log has the request. server_timing: the header that tells
    where the time went; "" without.
    """

    outputs: dict[str, np.ndarray]
    request_id: str | None
    server_timing: str

    def value(self) -> np.ndarray | dict[str, np.ndarray]:
        """The one output, or all by name."""
        return next(iter(self.outputs.values())) if len(self.outputs) == 1 else self.outputs


def read_inference(answer: Answer) -> Prediction:
    """The answer to infer_call(). Raises: ClientError."""
    check(answer)
    try:
        end = int(answer.headers[HEAD_LENGTH])
        outputs, at = {}, end
        for output in json.loads(answer.body[:end])["outputs"]:
            size = output["parameters"]["binary_data_size"]
            data = answer.body[at : at + size]
            outputs[output["name"]] = _array(data, output["datatype"], output["shape"])
            at += size
        if at != len(answer.body):
            raise ValueError(f"{len(answer.body) - at} bytes are left over")
    except _UNREADABLE as error:
        raise not_foldserves(error) from None
    return _prediction(answer, outputs)


def read_numbers(answer: Answer, datatypes: Mapping[str, str]) -> Prediction:
    """The answer to picture_call() without labels. datatypes: of the outputs. Raises: ClientError."""
    check(answer)
    headers = answer.headers
    try:
        if is_raw(answer):
            shape = [int(size) for size in headers["X-Tensor-Shape"].strip("[]").split(",") if size]
            name = urllib.parse.unquote(headers["X-Tensor-Name"])
            outputs = {name: _array(answer.body, headers["X-Tensor-Datatype"], shape)}
        else:
            outputs = {
                name: np.array(values, numpy_dtype(datatypes[name]))
                for name, values in json.loads(answer.body)["outputs"].items()
            }
    except _UNREADABLE as error:
        raise not_foldserves(error) from None
    return _prediction(answer, outputs)


def is_raw(answer: Answer) -> bool:
    """Whether the answer to picture_call() has the numbers of one output, and nothing else."""
    return answer.headers.get("Content-Type", "").partition(";")[0].strip() == RAW


def read_labels(answer: Answer, rows: int | None) -> list[list[Label]]:
    """The labels of each row. rows: how many were sent; None for a picture. Raises: ClientError."""
    found = read_json(answer)
    try:
        top = found["top"]
        listed = [top] if rows in (None, 1) else top
        return [[Label(str(one["label"]), float(one["score"])) for one in row] for row in listed]
    except _UNREADABLE as error:
        raise not_foldserves(error) from None


def read_datatypes(metadata: Any, key: str) -> dict[str, str]:
    """The datatypes of a model's "inputs" or "outputs", by name. Raises: ClientError."""
    try:
        return {str(one["name"]): str(one["datatype"]) for one in metadata[key]}
    except _UNREADABLE as error:
        raise not_foldserves(error) from None


def read_json(answer: Answer) -> Any:
    """The JSON of an answer. Raises: ClientError."""
    check(answer)
    try:
        return json.loads(answer.body)
    except _UNREADABLE as error:
        raise not_foldserves(error) from None


def read_ready(answer: Answer) -> bool:
    """Whether the answer to ready_call() is yes. Raises: ServerRefused when it is neither yes nor no."""
    if answer.status != 503:
        check(answer)
    return answer.status == 200


def not_foldserves(error: Exception) -> NotFoldserve:
    """For an answer that cannot be read."""
    return NotFoldserve(f"the answer is not foldserve's ({error or type(error).__name__}); is the URL right?")


def check(answer: Answer) -> None:
    """Raises: ServerRefused, DeadlinePassed unless the answer is a success."""
    if answer.status != 200:
        raise refusal(answer)


def refusal(answer: Answer) -> ClientError:
    """What the server says in an answer that is no success."""
    status, headers = answer.status, answer.headers
    try:
        told = json.loads(answer.body)
        text, code = f"{status} {told['code']}: {told['error']}", str(told["code"])
    except _UNREADABLE:
        shown, code = answer.body[:_SHOWN_CHARS].decode(errors="replace"), ""
        text = f"{status}: {shown}; is this a foldserve server?"
        if 300 <= status < 400:
            text = f"{status}: {headers.get('Location', 'another address')} is named instead; give the server's own URL"
    request_id = headers.get("X-Request-Id")
    if code == DeadlinePassed.code:
        passed = DeadlinePassed(text)
        passed.request_id = request_id
        return passed
    return ServerRefused(text, status, code, _retry_after_s(status, headers), request_id)


def _retry_after_s(status: int, headers: Mapping[str, str]) -> float | None:
    if status not in _AGAIN:
        return None
    after = headers.get("Retry-After", "")
    return max(float(after), _SOONEST_S) if after.isascii() and after.isdigit() else 1.0


def _prediction(answer: Answer, outputs: dict[str, np.ndarray]) -> Prediction:
    headers = answer.headers
    return Prediction(outputs, headers.get("X-Request-Id"), headers.get("Server-Timing", ""))


def _array(data: bytes, datatype: str, shape: list[int]) -> np.ndarray:
    """An array of one's own: writable, and aligned, which the bytes behind a JSON of any length are not."""
    dtype = numpy_dtype(datatype)
    if (
        any(type(size) is not int or size < 0 for size in shape)
        or len(data) != math.prod(shape) * dtype.itemsize
    ):
        raise ValueError(f"{len(data)} bytes are no {datatype} {shape}"[:_SHOWN_CHARS])
    return np.frombuffer(data, dtype).reshape(shape).copy()
