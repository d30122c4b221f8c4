"""Put a new version into a repository, whole or not at all.

    <repository>/<name>/.export-XXXX/   written here, flushed to the disk file by file
    <repository>/<name>/<version>/      renamed to this, one step, when everything is there

Knows nothing of networks: a caller fills the folder. A version that exists is never touched.
"""

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.errors import NameNotUsable, NotWritable, VersionExists

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
# The usual limit of a file name on Linux and macOS is 255 bytes.
_LONGEST_NAME = 200


def check_name(name: object) -> str:
    """Return name if it can be a model's folder and a part of a URL. Raises: NameNotUsable."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        raise NameNotUsable(
            f"the model name {name!r} cannot be a folder in a repository and a part of a URL; expected 1 to "
            f"{_LONGEST_NAME} letters, digits, '_', '-' and '.', not beginning with '.' or '-' (and no "
            "slash)"
        )
    return name


def check_version(version: object) -> int:
    """Return version as a positive integer; "3" is one too. Raises: NameNotUsable."""
    if isinstance(version, str) and re.fullmatch(r"[1-9][0-9]{0,17}", version):
        return int(version)
    if isinstance(version, int) and not isinstance(version, bool) and 0 < version < 10**18:
        return version
    raise NameNotUsable(f"the version {version!r} is not usable; expected a positive integer, for example 1")


def versions(repository: Path, name: str) -> tuple[int, ...]:
    """The versions of a model that repository has, ascending."""
    folder = repository / name
    if not folder.is_dir():
        return ()
    found = [entry.name for entry in folder.iterdir() if re.fullmatch(r"[1-9][0-9]*", entry.name)]
    return tuple(sorted(int(text) for text in found))


def next_version(repository: Path, name: str) -> int:
    """The version that an export without one becomes: the newest and one more, or 1."""
    return max(versions(repository, name), default=0) + 1


def check_free(repository: Path, name: str, version: int) -> None:
    """Raises: VersionExists. Asked before the work begins; new_version asks again at its end."""
    folder = repository / name / str(version)
    if os.path.lexists(folder):
        newest = max(versions(repository, name), default=version)
        raise VersionExists(
            f"{folder} exists, and versions are never overwritten; export as --version {newest + 1} "
            "(version=... in Python), or remove that folder first"
        )


@contextmanager
def new_version(repository: Path, name: str, version: int) -> Iterator[Path]:
    """Give an empty folder, and make it <repository>/<name>/<version> when the block ends without an error.

    Raises: VersionExists; NotWritable for what the file system refuses, also from within the block (a full
    disk, a read-only folder). In every case of failure, Ctrl-C included, nothing of the version is left.
    """
    check_free(repository, name, version)
    folder = repository / name
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    aside: Path | None = None
    done = False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".export-", dir=folder))
        aside.chmod(0o777 & ~_umask())  # mkdtemp gives 0700; the server may be another user
        yield aside
        for file in sorted(aside.iterdir()):
            _flush(file)
        _flush(aside)
        check_free(repository, name, version)
        aside.rename(folder / str(version))
        done = True
        _flush(folder)
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST} and aside is not None and not done:
            check_free(repository, name, version)
        raise NotWritable(
            f"cannot write {folder / str(version)}: {error.strerror or error}; nothing was left there. Free "
            "space on that disk, or choose a repository that you may write to."
        ) from error
    finally:
        if not done:
            if aside is not None:
                shutil.rmtree(aside, ignore_errors=True)
            for parent in made:
                _remove_if_empty(parent)


def sha256_and_size(path: Path) -> tuple[str, int]:
    """The hex digest and the size in bytes of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest(), path.stat().st_size


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:  # somebody else's files, or never made
        return
