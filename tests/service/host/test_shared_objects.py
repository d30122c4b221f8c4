"""Shared memory objects of other programs, read and written by name."""

import contextlib
import fcntl
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foldserve.service.host.shared_objects import (
    FOLDER,
    ObjectError,
    object_name,
    read_at,
    size_of,
    write_at,
)


@pytest.fixture
def name() -> Iterator[str]:
    """Of an object of 16 bytes."""
    made = f"test-{uuid.uuid4().hex}"
    path = Path(FOLDER, made)
    path.write_bytes(bytes(range(16)))
    yield made
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def test_what_is_written_is_read(name: str) -> None:
    write_at(name, 4, memoryview(b"abc"))
    assert read_at(name, 3, 5) == b"\3abc\7"
    assert size_of(name) == 16
    assert read_at(name, 16, 0) == b""


@pytest.mark.parametrize("key", ["/a", "a", "/..a", "a.b-c"])
def test_name_may_have_one_slash_before_it(key: str) -> None:
    assert object_name(key) == key.removeprefix("/")


@pytest.mark.parametrize(
    "key",
    [
        *("", "/", "//a", "/a/b", "a/", "/..", "..", "/.", "../dev/mem", "/proc/self/fd/3", "a\0b", "a\nb"),
        *("/sem.other", "sem.mp-1", "n" * 256, "é" * 128),
    ],
)
def test_what_leads_elsewhere_is_no_name(key: str) -> None:
    with pytest.raises(ObjectError, match="no name of a shared memory object"):
        object_name(key)


@pytest.mark.parametrize(("at", "nbytes"), [(0, 17), (16, 1), (2**62, 1), (0, 2**62)])
def test_beyond_the_end_nothing_is_read_or_written(name: str, at: int, nbytes: int) -> None:
    with pytest.raises(ObjectError, match="has 16 bytes"):
        read_at(name, at, nbytes)
    with pytest.raises(ObjectError, match="has 16 bytes"):
        write_at(name, at, memoryview(bytes(min(nbytes, 17))))
    assert size_of(name) == 16


def test_object_that_gets_shorter_while_it_is_read_is_an_error_and_no_signal(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.preadv

    def shorten_and_read(fd: int, buffers: list[memoryview], at: int) -> int:
        os.truncate(Path(FOLDER, name), 8)
        return real(fd, buffers, at)

    monkeypatch.setattr(os, "preadv", shorten_and_read)
    with pytest.raises(ObjectError, match="has 8 bytes and 16 are needed"):
        read_at(name, 0, 16)


def test_link_folder_pipe_and_removed_object_are_refused(name: str, tmp_path: Path) -> None:
    others = {kind: Path(FOLDER, f"{name}-{kind}") for kind in ("link", "folder", "pipe")}
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(16))
    others["link"].symlink_to(secret)
    others["folder"].mkdir()
    os.mkfifo(others["pipe"])
    try:
        for path in others.values():
            for use in (size_of, lambda other: write_at(other, 0, memoryview(b"x"))):
                with pytest.raises(ObjectError):
                    use(path.name)
        assert secret.read_bytes() == bytes(16)
    finally:
        others["link"].unlink()
        others["folder"].rmdir()
        others["pipe"].unlink()
    Path(FOLDER, name).unlink()
    with pytest.raises(ObjectError, match="no such object"):
        read_at(name, 0, 1)


class _Restored:
    """Puts a handler of SIGIO back."""

    def __init__(self, before: Any) -> None:
        self._before = before

    def close(self) -> None:
        signal.signal(signal.SIGIO, self._before)


def test_lease_of_a_client_makes_nobody_wait(name: str) -> None:
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # with which the holder is told
    with contextlib.closing(_Restored(before)), open(f"{FOLDER}/{name}", "r+b") as held:
        try:
            fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError:
            pytest.skip("no leases here")
        with pytest.raises(ObjectError):
            size_of(name)
