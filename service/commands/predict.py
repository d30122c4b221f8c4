"""`foldserve predict`: sends .npy files and pictures to a running server once and prints what comes back.

A picture is decoded here, as the model's manifest says (artifact/pictures.py), and its row is sent as .npy. Talks to
the server as any program can (client/).
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TextIO

import numpy as np

from foldserve.service.artifact.model_card import ModelCard, model_card
from foldserve.service.artifact.pictures import PictureInput, decode
from foldserve.service.client.answers import not_foldserves
from foldserve.service.client.client import Client
from foldserve.service.client.errors import ClientError
from foldserve.service.documents import printable
from foldserve.service.errors import BadPicture, ConfigError

_SHOWN_NUMBERS: Final = 10
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


def connect(url: str, timeout_ms: float, key_file: str | None = None, ca: str | None = None) -> Client:
    """A client of the server.

    Args:
        key_file: the file of the key to present. ca: the PEM file of the certificates to trust.
    Raises: ConfigError for one of these that cannot be used.
    """
    key = None
    if key_file is not None:
        try:
            key = Path(key_file).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"--key-file {key_file} cannot be read: {error}; expected a text file with the key"
            ) from None
    try:
        return Client(url, timeout_ms / 1000, key=key, ca=ca)
    except ClientError as error:
        raise ConfigError(str(error)) from None


def predict_files(
    client: Client,
    model: str,
    files: Sequence[str],
    version: str | None,
    output: str | None,
    out: TextIO,
    top: int | None = None,
) -> int:
    """Send the files, print the outputs to out and an error to stderr; return the exit code.

    Args:
        files: paths, each a request of its own; or NAME=path for every input of one request.
        top: how many labels to print of a model that has them; None for 5 of a picture, and none of an array.
    Raises: ConfigError for a file that cannot be used.
    """
    requests = _requests(files)
    pictured = any(isinstance(value, bytes) for _, values in requests for value in values.values())
    card = ModelCard()
    if pictured or top is not None:
        try:
            card = fetch_card(client, model, version)
        except ClientError as error:
            print(f"/info: {error}", file=sys.stderr)
            return 1
    for label, values in requests:
        try:
            arrays = {name: _array(value, card, model) for name, value in values.items()}
            began_s = time.perf_counter()
            reply = client.prediction(
                model,
                arrays[""] if arrays.keys() == {""} else arrays,
                version=version,
                outputs=() if output is None else output,
            )
            milliseconds = (time.perf_counter() - began_s) * 1000
        except ClientError as error:
            print(f"{label}: {error}", file=sys.stderr)
            return 1
        print(f"{label}: {milliseconds:.1f} ms", file=out)
        if reply.server_timing:
            print(f"  server: {reply.server_timing}", file=out)
        for name, array in reply.outputs.items():
            print(f"  {name} {array.dtype} {list(array.shape)}", file=out)
            print(_indented(_shown(array)), file=out)
            for row in array if array.ndim == 2 else ():
                for name, score in card.top(row, DEFAULT_TOP if top is None else top):
                    print(f"    {score:10.4f}  {printable(name)}", file=out)
    return 0


def fetch_card(client: Client, model: str, version: str | None) -> ModelCard:
    """What the server says of the model. Raises ClientError."""
    try:
        return model_card(client.info(), model, version)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise not_foldserves(error) from None


def _array(value: Loaded, card: ModelCard, model: str) -> np.ndarray:
    """The rows to send. Raises: ClientError for a picture that cannot be decoded, or that the model does not take."""
    if not isinstance(value, bytes):
        return value
    if card.image is None:
        raise ClientError(
            f"this is a picture, and the server does not say how model {model!r} takes pictures; export the network "
            "with an ImageInput around it, or send the array that the model takes (/docs shows its shape) as .npy"
        )
    try:
        return decode(value, card.image)[None]
    except BadPicture as error:
        raise ClientError(str(error)) from None


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
        decode(body, PictureInput("any"))  # now, so that a damaged one is reported before anything is sent
    except BadPicture as error:
        problems.append(f"{path} is a {kind} picture that cannot be used: {error}")
    return body


def _why_unread(path: str, error: Exception) -> str:
    """What is wrong with a file that holds no array, in one line."""
    if isinstance(error, FileNotFoundError):
        return f"{path} does not exist; expected a file that numpy.save wrote, or a JPEG or PNG"
    if isinstance(error, OSError) and error.strerror:
        return f"{path} cannot be read: {error.strerror}; expected a file that numpy.save wrote"
    with open(path, "rb") as file:
        start = file.read(12)
    for magic, kind in _KINDS.items():
        if start.startswith(magic):
            return (
                f"{path} is a {kind} picture; expected a JPEG, a PNG, or a .npy file: convert it, or send the "
                "array that the model takes (/docs shows its shape) as a .npy file"
            )
    if start.startswith(_NPY):
        # numpy's own text advises to load the objects, which runs whatever they say.
        why = "it holds Python objects" if "allow_pickle" in str(error) else str(error)
        return f"{path} is a .npy file that cannot be used: {why}; save an array of numbers with numpy.save"
    what = "is not a .npy file" if start else "is empty"
    return f"{path} {what}; expected a file that numpy.save wrote, or a JPEG or PNG"


def _shown(array: np.ndarray) -> str:
    return np.array2string(array, threshold=10 * _SHOWN_NUMBERS, edgeitems=_SHOWN_NUMBERS // 2, precision=6)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
