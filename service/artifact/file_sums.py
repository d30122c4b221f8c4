"""Sizes and hashes of a model's files: whether they are what the export wrote, or what the server found at its start.

A worker that is started anew loads its models anew. Were a file another by then, one name would answer as two models,
by which worker a request meets. Knows no formats but where ONNX names files beside its own.
"""

import hashlib
import mmap
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from foldserve.service.artifact.manifest import FileEntry

_CHUNK_BYTES: Final = 2**20
_LOCATION: Final = re.compile(rb"\n\x08location\x12([\x80-\xff]?[\x00-\x7f])", re.DOTALL)
"""A StringStringEntryProto of TensorProto.external_data: the key, then the length of the value, a varint."""


class Origin(NamedTuple):
    """Who states what a file should be, and what it means that it is not."""

    says: str
    means: str


EXPORT: Final = Origin("the manifest says", "it was changed after export")
START: Final = Origin("at the server's start it had", "it was changed since")

Sums = Mapping[str, FileEntry]
"""By path in the version's folder, as in the manifest."""


@dataclass(frozen=True)
class FileCheck:
    """Whether one file of an artifact is what is expected; problem is "" when it is."""

    name: str
    size_bytes: int
    problem: str


def check_files(folder: Path, sums: Sums, origin: Origin) -> Iterator[FileCheck]:
    """Compare files with their sizes and hashes."""
    for name, expected in sums.items():
        yield _check(folder, name, expected, origin)


def _check(folder: Path, name: str, expected: FileEntry, origin: Origin) -> FileCheck:
    path = folder / name
    try:
        status = path.stat()
        size = status.st_size
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, a device read for ever
            return FileCheck(name, 0, f"{path} is not a regular file")
        if size != expected.size:
            return FileCheck(name, size, f"{path} has {size} bytes, {origin.says} {expected.size}")
        found = _sha256(path)
    except OSError as error:
        return FileCheck(name, 0, f"{path} cannot be read: {error}")
    if found != expected.sha256:
        problem = f"{path} has sha256 {found}, {origin.says} {expected.sha256}: {origin.means}"
        return FileCheck(name, size, problem)
    return FileCheck(name, size, "")


def check_model(folder: Path, file: Path, sums: Sums, origin: Origin) -> Iterator[FileCheck]:
    """Compare a model's file, and those that it takes its weights from, which must all be among sums."""
    check = _check(folder, file.name, sums[file.name], origin)
    yield check
    if check.problem:
        return
    try:
        names = sorted(weight_files(file))
    except OSError as error:
        yield FileCheck(file.name, check.size_bytes, f"{file} cannot be read: {error}")
        return
    for name in names:
        if name in sums:
            yield _check(folder, name, sums[name], origin)
        else:
            problem = f"{file} takes weights from {name[:200]!r}, of which {origin.says} nothing"
            yield FileCheck(name, 0, problem)


def sums_now(folder: Path, file: Path) -> Sums:
    """Of a model's file, and of those in its folder that it takes its weights from. Raises: OSError."""
    return {
        name: sum_of(folder / name)
        for name in sorted({file.name} | weight_files(file))
        if (folder / name).is_file()
    }


def sum_of(path: Path) -> FileEntry:
    """The hash and the size of a file as it is now. Raises: OSError."""
    return FileEntry(sha256=_sha256(path), size=path.stat().st_size)


def weight_files(file: Path) -> set[str]:
    """The files beside its own in which an ONNX file says that tensors lie; none for other files. Raises: OSError."""
    if file.suffix != ".onnx" or not file.stat().st_size:
        return set()
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        places = ((found.end(), found[1]) for found in _LOCATION.finditer(content))
        names = {content[at : at + _varint(length)] for at, length in places}
    return {name.decode(errors="surrogateescape") for name in names if b"\0" not in name}


def _varint(data: bytes) -> int:
    return sum((byte & 0x7F) << (7 * place) for place, byte in enumerate(data))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def size_text(size_bytes: int) -> str:
    """A size for people, in the units of 1000 bytes."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"
