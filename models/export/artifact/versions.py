"""Put a new version into a repository, whole or not at all.

    <repository>/.export-XXXX/       written here, flushed to the disk file by file
    <repository>/<name>/<version>/   renamed to this, one step, when everything is there

A server passes over the first, and never sees a model without a version. Whoever writes there holds a lock on the
folder, which ends with its process: what a killed export left is removed by the next one.

Knows nothing of networks: a caller fills the folder. A version that exists is never touched.
"""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from foldserve.models.errors import NameNotUsable, NotWritable, VersionExists
from foldserve.service.artifact.names import MODEL_NAME, VERSION_NAME

_ASIDE = ".export-"


def check_name(name: object) -> str:
    """Return name if it can be a model's folder and a part of a URL. Raises: NameNotUsable."""
    if not isinstance(name, str) or not MODEL_NAME.fullmatch(name):
        raise NameNotUsable(
            f"the model name {_shortened(name)} cannot be a folder in a repository and a part of a URL; expected 1 to "
            "128 letters, digits, '_', '-' and '.', not beginning with '.' or '-' (and no slash)"
        )
    return name


def _shortened(name: object) -> str:
    text = repr(name)
    return text if len(text) <= 150 else f"{text[:140]}..."


def check_version(version: object) -> int:
    """Return version as a positive integer; "3" is one too. Raises: NameNotUsable."""
    if isinstance(version, str) and VERSION_NAME.fullmatch(version):
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
    made = [parent for parent in (repository, *repository.parents) if not parent.exists()]
    aside: Path | None = None
    lock = -1
    done = False
    try:
        repository.mkdir(parents=True, exist_ok=True)
        _remove_dead(repository)
        aside, lock = _made_aside(repository)
        aside.chmod(0o777 & ~_umask())  # mkdtemp gives 0700; the server may be another user
        yield aside
        for file in sorted(aside.iterdir()):
            _flush(file)
        _flush(aside)
        check_free(repository, name, version)
        if not folder.is_dir():
            made.insert(0, folder)
            folder.mkdir(exist_ok=True)
        aside.rename(folder / str(version))
        done = True
        _flush(folder)
        _flush(repository)
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST} and aside is not None and not done:
            check_free(repository, name, version)
        raise NotWritable(
            f"cannot write {folder / str(version)}: {error.strerror or error}; nothing was left there. Free "
            "space on that disk, or choose a repository that you may write to."
        ) from error
    finally:
        if lock >= 0:
            os.close(lock)
        if not done:
            if aside is not None:
                shutil.rmtree(aside, ignore_errors=True)
            for parent in made:
                _remove_if_empty(parent)


def _made_aside(repository: Path) -> tuple[Path, int]:
    """A new folder, and the descriptor that holds the lock on it."""
    while True:
        # Another export may take it for dead and remove it before it is locked.
        aside = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=repository))
        try:
            lock = os.open(aside, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        with contextlib.suppress(OSError):  # a file system without locks: nobody removes anything there
            fcntl.flock(lock, fcntl.LOCK_EX)
        if aside.exists():
            return aside, lock
        os.close(lock)


def _remove_dead(repository: Path) -> None:
    """Remove what exports left that have ended without cleaning up: nobody holds a lock on it."""
    for left in repository.glob(f"{_ASIDE}*"):
        try:
            lock = os.open(left, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # no folder, gone meanwhile, or another user's
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
        except OSError:  # it is being written
            pass
        finally:
            os.close(lock)


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
