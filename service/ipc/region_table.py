"""The regions of shared memory that clients on this host have registered: one table for all processes of the server.

A client registers with whichever API server has its connection, and asks any of them. The table is small: a text that
is written anew into the half that nobody reads, and made valid by one word. A writer that dies leaves the old one.
"""

import fcntl
from collections.abc import Callable
from typing import Final, NamedTuple

import orjson

from foldserve.service.ipc.handles import SharedMemory

_HALVES_AT: Final = 64
"""Before them stands how often the table was written, whose lowest bit says which half is valid."""
_LENGTH_BYTES: Final = 8
"""Of the text, before it."""
_HALF_BYTES: Final = 2**20
MOST_REGIONS: Final = 1024
NAME_BYTES: Final = 255


class Region(NamedTuple):
    """A part of a shared memory object. number: of its registration, which no other has had."""

    key: str
    offset: int
    byte_size: int
    number: int


class RegionTable:
    """Made by the parent. Picklable as its handles are."""

    def __init__(self) -> None:
        self.memory = SharedMemory("regions", _HALVES_AT + 2 * _HALF_BYTES)

    def map(self) -> "MappedRegionTable":
        """This process's view."""
        return MappedRegionTable(self.memory)


class TableBusy(Exception):
    """Another process writes the table at this moment."""


class TableFull(Exception):
    """There is no room for another region."""


class MappedRegionTable:
    """One process's view of the table."""

    def __init__(self, memory: SharedMemory) -> None:
        self._fd = memory.handle.fd
        self._memory = memory.map()
        self._written = memoryview(self._memory)[:8].cast("Q")
        """Read and stored as a whole."""
        self._seen = 0
        self._regions: dict[str, Region] = {}

    def regions(self) -> dict[str, Region]:
        """Every region by its name; not to be changed."""
        written = self._written[0]
        while written != self._seen:
            text = self._text(written)
            if (after := self._written[0]) != written:
                written = after  # perhaps into the half that was read
                continue
            self._regions = {name: Region(*values) for name, values in orjson.loads(text).items()}
            self._seen = written
        return self._regions

    def add(self, name: str, key: str, offset: int, byte_size: int) -> bool:
        """Register a region; False when there is one of that name. Raises: TableBusy, TableFull."""

        def added(regions: dict[str, Region], number: int) -> bool:
            if name in regions:
                return False
            if len(regions) >= MOST_REGIONS:
                raise TableFull
            regions[name] = Region(key, offset, byte_size, number)
            return True

        return self._change(added)

    def remove(self, name: str | None) -> None:
        """Unregister a region, or all; nothing where there is none. Raises: TableBusy."""

        def removed(regions: dict[str, Region], number: int) -> bool:
            if name is None:
                regions.clear()
            return name is None or regions.pop(name, None) is not None

        self._change(removed)

    def _change(self, change: Callable[[dict[str, Region], int], bool]) -> bool:
        """Write the table as `change` makes it, unless that returns False."""
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TableBusy from None
        try:
            regions = dict(self.regions())
            written = self._seen + 1
            if not change(regions, written):
                return False
            text = orjson.dumps({name: list(region) for name, region in regions.items()})
            if len(text) > _HALF_BYTES - _LENGTH_BYTES:
                raise TableFull
            at = self._half(written)
            self._memory[at : at + _LENGTH_BYTES] = len(text).to_bytes(_LENGTH_BYTES, "little")
            self._memory[at + _LENGTH_BYTES : at + _LENGTH_BYTES + len(text)] = text
            self._written[0] = written
            return True
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)  # the kernel does it for a process that dies

    def _text(self, written: int) -> bytes:
        at = self._half(written)
        nbytes = int.from_bytes(self._memory[at : at + _LENGTH_BYTES], "little")
        return self._memory[at + _LENGTH_BYTES : at + _LENGTH_BYTES + min(nbytes, _HALF_BYTES)]

    @staticmethod
    def _half(written: int) -> int:
        return _HALVES_AT + written % 2 * _HALF_BYTES
