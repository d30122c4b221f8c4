"""`foldserve predict`: sends .npy files and pictures to a running server once and prints what comes back.

A picture is decoded here, as the model's manifest says (artifact/pictures.py), and its row is sent as .npy. Talks to
the server as any client does, over HTTP with the standard library alone.
"""

import http.client
import io
import sys
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np
import orjson

from foldserve.service.artifact.model_card import ModelCard, model_card
from foldserve.service.artifact.pictures import BadPicture, PictureInput, decode
from foldserve.service.codecs import BodyType
from foldserve.service.codecs.npy_codec import encode as encode_npy
from foldserve.service.commands.health_check import UnixConnection
from foldserve.service.documents import printable
from foldserve.service.errors import ConfigError

# npy keeps datatype and every bit; a model with several outputs can only answer all of them in JSON.
_ACCEPT: Final = f"{BodyType.NPY.value}, {BodyType.JSON.value};q=0.5"
_SHOWN_NUMBERS: Final = 10
_UNIX: Final = "unix:"
_NPY: Final = b"\x93NUMPY"
_PICTURES: Final = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG"}
"""How the files of pictures begin that can be sent."""
_KINDS: Final = {
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
"""How files of other pictures begin."""
DEFAULT_TOP: Final = 5

Loaded = np.ndarray | bytes
"""A file's content: an array, or the bytes of a picture, which takes the server's word to become one."""


@dataclass(frozen=True)
class Reply:
    """The server's answer to one request: output name -> array."""

    outputs: dict[str, np.ndarray]
    milliseconds: float
    server_timing: str


@dataclass(frozen=True)
class Target:
    """Where requests go, and where models are described. connect: a new connection, its time limit in seconds."""

    server: str
    connect: Callable[[float], http.client.HTTPConnection]
    path: str
    info_path: str

    def __str__(self) -> str:
        return f"{self.server}{self.path if '//' in self.server else ''}"


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
    top: int | None = None,
) -> int:
    """Send the files, print the outputs to out and an error to stderr; return the exit code.

    Args:
        files: paths, each a request of its own; or NAME=path for every input of one request.
        top: how many labels to print of a model that has them; None for 5 of a picture, and none of an array.
    Raises: ConfigError for a URL or a file that cannot be used.
    """
    if top is not None and top < 1:
        raise ConfigError(f"--top is {top}; expected how many labels to print, 1 or more")
    target = _target(url, model, version, output)
    requests = _requests(files)
    pictured = any(isinstance(value, bytes) for _, values in requests for value in values.values())
    card = ModelCard()
    if pictured or top is not None:
        try:
            card = fetch_card(target, model, version, timeout_ms)
        except ClientError as error:
            print(f"{target.info_path}: {error}", file=sys.stderr)
            return 1
    for label, values in requests:
        try:
            arrays = {name: _array(value, card, model) for name, value in values.items()}
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
            for row in array if array.ndim == 2 else ():
                for name, score in card.top(row, DEFAULT_TOP if top is None else top):
                    print(f"    {score:10.4f}  {printable(name)}", file=out)
    return 0


def fetch_card(target: Target, model: str, version: str | None, timeout_ms: float) -> ModelCard:
    """What the server says of the model. Raises ClientError."""
    status, _, content = _exchange(target, "GET", target.info_path, None, {}, timeout_ms)
    if status != 200:
        raise ClientError(_refusal(status, content))
    try:
        return model_card(orjson.loads(content), model, version)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ClientError(f"the answer is not foldserve's ({error}); is the URL right?") from None


def _array(value: Loaded, card: ModelCard, model: str) -> np.ndarray:
    """The rows to send. Raises: ClientError for a picture that cannot be decoded, or that the model does not take."""
    if not isinstance(value, bytes):
        return value
    if card.image is None:
        raise ClientError(
            f"this is a picture, and the server does not say how model {model!r} takes pictures; export the network "
            "with an ImageInput around it, or decode the picture to the array that the model takes (/docs shows its "
            "shape) and save that with numpy.save"
        )
    try:
        return decode(value, card.image)[None]
    except BadPicture as error:
        raise ClientError(str(error)) from None


def send(target: Target, arrays: dict[str, np.ndarray], timeout_ms: float) -> Reply:
    """POST one request: one unnamed array ({"": array}) as npy, several as JSON. Raises ClientError."""
    if arrays.keys() == {""}:
        kind, body = BodyType.NPY, encode_npy(arrays[""])
    else:
        kind = BodyType.JSON
        values = {name: array if array.ndim else array.item() for name, array in arrays.items()}
        body = orjson.dumps({"inputs": values}, option=orjson.OPT_SERIALIZE_NUMPY)
    asked = {"Content-Type": kind.value, "Accept": _ACCEPT, "X-Timeout-Ms": f"{timeout_ms:g}"}
    started_s = time.perf_counter()
    status, headers, content = _exchange(target, "POST", target.path, body, asked, timeout_ms)
    milliseconds = (time.perf_counter() - started_s) * 1000
    if status != 200:
        raise ClientError(_refusal(status, content))
    return Reply(_outputs(content, headers), milliseconds, headers.get("Server-Timing", ""))


def _exchange(
    target: Target, method: str, path: str, body: bytes | None, headers: Mapping[str, str], timeout_ms: float
) -> tuple[int, Any, bytes]:
    """One request on a connection of its own: status, headers and content of the answer. Raises ClientError."""
    # The server keeps the time; the socket is given more, so that the 504 of a server that is slow can arrive.
    connection = target.connect(timeout_ms / 1000 + 5.0)
    try:
        connection.request(method, path, body, dict(headers))
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise ClientError(
            f"{target} cannot be reached: {error or type(error).__name__}; is the server up?"
        ) from None
    finally:
        connection.close()


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


def _target(url: str, model: str, version: str | None, output: str | None) -> Target:
    asked = {name: value for name, value in (("version", version), ("output", output)) if value is not None}
    query = f"?{urllib.parse.urlencode(asked)}" if asked else ""
    path = f"/predict/{urllib.parse.quote(model, safe='')}{query}"
    if url.startswith(_UNIX) and url != _UNIX:
        return Target(url, partial(UnixConnection, url.removeprefix(_UNIX)), path, "/info")
    try:
        parts = urllib.parse.urlsplit(url if "//" in url else f"http://{url}")
        host, port = None if url == _UNIX else parts.hostname, parts.port
    except ValueError:  # a port that is no number, brackets that do not close
        host = None
    if host is None or parts.scheme not in ("http", "https"):
        raise ConfigError(
            f"URL {url!r} is no server's address; expected one as in http://localhost:8000 or unix:/path"
        )
    # http.client asks no proxy, whatever the environment says: the server is named, and mostly on this machine.
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    address = f"{parts.scheme}://{parts.netloc}"
    root = parts.path.rstrip("/")
    return Target(address, lambda timeout_s: kind(host, port, timeout=timeout_s), root + path, f"{root}/info")


def _requests(files: Sequence[str]) -> list[tuple[str, dict[str, Loaded]]]:
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


def _load(path: str, problems: list[str]) -> Loaded:
    try:
        with open(path, "rb") as file:
            start = file.read(4)
            kind = next((kind for magic, kind in _PICTURES.items() if start.startswith(magic)), None)
            if kind:
                return _picture(path, kind, start + file.read(), problems)
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        problems.append(_why_unread(path, error))
        return np.empty(0)
    if not isinstance(array, np.ndarray):
        problems.append(f"{path} is a .npz archive; expected one array: save it with numpy.save")
        return np.empty(0)
    return array


def _picture(path: str, kind: str, body: bytes, problems: list[str]) -> bytes:
    try:
        decode(body, PictureInput("any"))  # now, so that a damaged one is told before anything is sent
    except BadPicture as error:
        problems.append(f"{path} is a {kind} picture that cannot be used: {error}")
    return body


def _why_unread(path: str, error: Exception) -> str:
    """What is wrong with a file that is no array, as whoever gave it would say it."""
    if isinstance(error, FileNotFoundError):
        return f"{path} does not exist; expected a file that numpy.save wrote, or a JPEG or PNG"
    if isinstance(error, OSError) and error.strerror:
        return f"{path} cannot be read: {error.strerror}; expected a file that numpy.save wrote"
    with open(path, "rb") as file:
        start = file.read(12)
    for magic, kind in _KINDS.items():
        if start.startswith(magic):
            return (
                f"{path} is a {kind} picture; expected a JPEG, a PNG, or a .npy file: convert it, or decode it to "
                "the array that the model takes (/docs shows its shape) and save that with numpy.save"
            )
    if start.startswith(_NPY):
        return f"{path} is a .npy file that cannot be used: {error}; save an array of numbers again with numpy.save"
    return f"{path} is no .npy file{' but empty' if not start else ''}; save the array with numpy.save"


def _shown(array: np.ndarray) -> str:
    return np.array2string(array, threshold=10 * _SHOWN_NUMBERS, edgeitems=_SHOWN_NUMBERS // 2, precision=6)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
