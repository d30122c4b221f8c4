"""`foldserve predict`: sends .npy files to a running server once and prints what comes back.

Talks to the server as any client does, over HTTP with the standard library alone.
"""

import io
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np
import orjson

from service.codecs import BodyType
from service.codecs.npy_codec import encode as encode_npy
from service.errors import ConfigError

# npy keeps datatype and every bit; a model with several outputs can only answer all of them in JSON.
_ACCEPT: Final = f"{BodyType.NPY.value}, {BodyType.JSON.value};q=0.5"
_SHOWN_NUMBERS: Final = 10


@dataclass(frozen=True)
class Reply:
    """The server's answer to one request: output name -> array."""

    outputs: dict[str, np.ndarray]
    milliseconds: float
    server_timing: str


class ClientError(Exception):
    """The request could not be made, or the server refused it."""


def predict_files(
    url: str,
    model: str,
    files: Sequence[str],
    version: str | None,
    output: str | None,
    timeout_ms: float,
    out: TextIO,
) -> int:
    """Send the files, print the outputs to out and an error to stderr; return the exit code.

    Args:
        files: paths, each a request of its own; or NAME=path for every input of one request.
    Raises: ConfigError for a URL or a file that cannot be used.
    """
    target = _target(url, model, version, output)
    for label, arrays in _requests(files):
        try:
            reply = send(target, arrays, timeout_ms)
        except ClientError as error:
            print(f"{label}: {error}", file=sys.stderr)
            return 1
        print(f"{label}: {reply.milliseconds:.1f} ms", file=out)
        if reply.server_timing:
            print(f"  server: {reply.server_timing}", file=out)
        for name, array in reply.outputs.items():
            print(f"  {name} {array.dtype} {list(array.shape)}", file=out)
            print(_indented(_shown(array)), file=out)
    return 0


def send(target: str, arrays: dict[str, np.ndarray], timeout_ms: float) -> Reply:
    """POST one request: one unnamed array ({"": array}) as npy, several as JSON. Raises ClientError."""
    if arrays.keys() == {""}:
        kind, body = BodyType.NPY, encode_npy(arrays[""])
    else:
        kind = BodyType.JSON
        body = orjson.dumps({"inputs": arrays}, option=orjson.OPT_SERIALIZE_NUMPY)
    headers = {"Content-Type": kind.value, "Accept": _ACCEPT, "X-Timeout-Ms": f"{timeout_ms:g}"}
    request = urllib.request.Request(target, body, headers, method="POST")
    started_s = time.perf_counter()
    try:
        # The server keeps the time; the socket is given more, so that the 504 of a server that is slow can arrive.
        with urllib.request.urlopen(request, timeout=timeout_ms / 1000 + 5.0) as response:
            content, answer_headers = response.read(), response.headers
    except urllib.error.HTTPError as error:
        with error:
            raise ClientError(_refusal(error.code, error.read())) from None
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise ClientError(f"{target} cannot be reached: {reason}; is the server up?") from None
    milliseconds = (time.perf_counter() - started_s) * 1000
    return Reply(_outputs(content, answer_headers), milliseconds, answer_headers.get("Server-Timing", ""))


def _outputs(content: bytes, headers: Any) -> dict[str, np.ndarray]:
    try:
        if headers.get_content_type() == BodyType.NPY.value:
            name = urllib.parse.unquote(headers.get("X-Tensor-Name", "output"))
            return {name: np.load(io.BytesIO(content), allow_pickle=False)}
        return {name: np.array(value) for name, value in orjson.loads(content)["outputs"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ClientError(f"the answer is not foldserve's ({error}); is the URL right?") from None


def _refusal(status: int, content: bytes) -> str:
    try:
        told = orjson.loads(content)
        return f"{status} {told['code']}: {told['error']}"
    except (ValueError, KeyError, TypeError):
        return f"{status}: {content[:200].decode(errors='replace')}; is this a foldserve server?"


def _target(url: str, model: str, version: str | None, output: str | None) -> str:
    parts = urllib.parse.urlsplit(url if "//" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(f"URL {url!r} is no server's address; expected one as in http://localhost:8000")
    path = f"{parts.path.rstrip('/')}/predict/{urllib.parse.quote(model, safe='')}"
    asked = {name: value for name, value in (("version", version), ("output", output)) if value is not None}
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, urllib.parse.urlencode(asked), ""))


def _requests(files: Sequence[str]) -> list[tuple[str, dict[str, np.ndarray]]]:
    """What to send, with the label that it is printed under. Raises ConfigError with every bad file."""
    # A path may hold "=": it names an input only where no such file exists.
    pairs = [("", file) if Path(file).exists() else _split(file) for file in files]
    problems: list[str] = []
    loaded = [(name, path, _load(path, problems)) for name, path in pairs]
    names = [name for name, _ in pairs if name]
    if names and len(names) < len(pairs):
        problems.append(
            "some files are given as NAME=FILE and some without; expected a name for all or for none"
        )
    if len(set(names)) < len(names):
        problems.append(f"an input is given twice ({', '.join(names)}); expected each name once")
    if problems:
        raise ConfigError(*problems)
    if names:
        return [(", ".join(files), {name: array for name, _, array in loaded})]
    return [(path, {"": array}) for _, path, array in loaded]


def _split(file: str) -> tuple[str, str]:
    name, separator, path = file.partition("=")
    return (name, path) if separator else ("", file)


def _load(path: str, problems: list[str]) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        problems.append(f"{path} cannot be read as .npy: {error}; save the array with numpy.save")
        return np.empty(0)
    if not isinstance(array, np.ndarray):
        problems.append(f"{path} is a .npz archive; expected one array: save it with numpy.save")
        return np.empty(0)
    return array


def _shown(array: np.ndarray) -> str:
    return np.array2string(array, threshold=10 * _SHOWN_NUMBERS, edgeitems=_SHOWN_NUMBERS // 2, precision=6)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
