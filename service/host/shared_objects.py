"""POSIX shared memory objects (shm_overview(7)) that other programs made: read and written, never mapped.

Whoever maps memory that another makes shorter is killed by SIGBUS. pread(2) and pwrite(2) end early instead. An object
is opened for each use, by its name, so that nothing is held of one that its owner has removed.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Final

FOLDER: Final = "/dev/shm"
"""Where Linux has them (glibc and musl, shm_open(3))."""
_NAME_BYTES: Final = 255
_SEMAPHORE: Final = "sem."
"""Begins the names of other programs' semaphores (sem_overview(7)), which lie beside."""
_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""No link leads out of the folder; nobody's lease (fcntl(2)) and no FIFO makes opening wait."""
_REASONS: Final = {
    errno.ENOENT: "there is no such object; create it first, on this host and in the same /dev/shm as the server's",
    errno.EACCES: "the server may not open it; let it belong to the server's user, or give it the rights",
    errno.EPERM: "the server may not open it; let it belong to the server's user, or give it the rights",
    errno.ELOOP: "it is a symbolic link; name the object itself",
    errno.ENOSPC: "there is no memory left for it; raise the size of /dev/shm, or use less",
}


class ObjectError(Exception):
    """Why an object cannot be used, and what to do about it."""


def object_name(key: str) -> str:
    """The object that a key names, with a slash before it or without, as shm_open(3) has it. Raises: ObjectError."""
    name = key.removeprefix("/")
    if (
        not name
        or name in (".", "..")
        or name.startswith(_SEMAPHORE)
        or len(os.fsencode(name)) > _NAME_BYTES
        or any(char == "/" or not char.isprintable() for char in name)
    ):
        raise ObjectError(
            f"it is no name of a shared memory object; expected at most {_NAME_BYTES} bytes without a further slash, "
            "as in /my_region"
        )
    return name


def size_of(name: str) -> int:
    """Bytes of the object. Raises: ObjectError."""
    with _opened(name, os.O_RDONLY) as fd:
        return os.fstat(fd).st_size


def read_at(name: str, at: int, nbytes: int) -> bytearray:
    """So many bytes of the object. Raises: ObjectError, also when it ends before."""
    with _opened(name, os.O_RDONLY) as fd:
        _check_size(fd, at + nbytes)  # before memory is allocated for them
        data = bytearray(nbytes)
        left = memoryview(data)
        while left:
            got = os.preadv(fd, [left], at)
            if not got:
                raise _shorter(os.fstat(fd).st_size, at + len(left))
            at, left = at + got, left[got:]
        return data


def write_at(name: str, at: int, data: memoryview) -> None:
    """Write these bytes into the object, which is not made longer. Raises: ObjectError."""
    with _opened(name, os.O_RDWR) as fd:
        _check_size(fd, at + len(data))
        while data:
            put = os.pwrite(fd, data, at)
            at, data = at + put, data[put:]


@contextlib.contextmanager
def _opened(name: str, mode: int) -> Iterator[int]:
    try:
        fd = os.open(f"{FOLDER}/{name}", mode | _FLAGS)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ObjectError("it is no shared memory object; name one")
            yield fd
        finally:
            os.close(fd)
    except OSError as error:
        raise ObjectError(_REASONS.get(error.errno or 0, f"{error.strerror}; name another one")) from None


def _check_size(fd: int, end: int) -> None:
    size = os.fstat(fd).st_size
    if size < end:
        raise _shorter(size, end)


def _shorter(size: int, end: int) -> ObjectError:
    return ObjectError(f"it has {size} bytes and {end} are needed; make it larger, or use less of it")
