"""What clients on this host have registered, as requests use it: looked up, bounded, read and written.

Implements codecs.protocol.SharedRegions, and the calls that register. Everything that a client can get wrong is
a BadRequest with the region's name.
"""

from typing import Final

from foldserve.service.errors import BadRequest, NotReady, TooLarge
from foldserve.service.host.shared_objects import ObjectError, object_name, read_at, size_of, write_at
from foldserve.service.ipc.region_table import (
    MOST_REGIONS,
    NAME_BYTES,
    MappedRegionTable,
    Region,
    TableBusy,
    TableFull,
)

_LARGEST: Final = 2**63 - 1


class SharedRegions:
    """In one process.

    at_once_bytes: what may be copied where others wait for it; whoever is asked for more has it done elsewhere.
    limit_bytes: of a tensor, by setting.
    """

    def __init__(self, table: MappedRegionTable, at_once_bytes: int, limit_bytes: int) -> None:
        self._table = table
        self.at_once_bytes = at_once_bytes
        self._limit_bytes = limit_bytes

    # -- what requests do

    def check(self, name: str, offset: int, nbytes: int, where: str) -> int:
        """The number of the registration that has these bytes. where: who needs them. Raises: BadRequest, TooLarge."""
        region = self._find(name, where)
        if offset + nbytes > region.byte_size:
            raise BadRequest(
                f"{where} takes {nbytes} bytes from byte {offset} of region {name[:100]!r}, which has "
                f"{region.byte_size}: register more of the object, or use less"
            )
        if nbytes > self._limit_bytes:
            raise TooLarge(
                f"{where} has {nbytes} bytes in shared memory; expected at most {self._limit_bytes}: send fewer rows, "
                "or raise --max-body-bytes on the server"
            )
        return region.number

    def read(self, name: str, offset: int, nbytes: int, where: str) -> bytearray:
        """A copy of these bytes, which were checked. Raises: BadRequest."""
        region = self._find(name, where)
        try:
            return read_at(object_name(region.key), region.offset + offset, nbytes)
        except ObjectError as error:
            raise _unusable(name, region, where, error) from None

    def write(self, name: str, number: int, offset: int, data: memoryview, where: str) -> None:
        """Write there, if that is the registration that was checked. Raises: BadRequest."""
        region = self._find(name, where)
        if region.number != number:
            raise BadRequest(
                f"region {name[:100]!r} was registered anew while {where} was computed, and nothing was written; "
                "unregister it when the requests that use it are answered"
            )
        try:
            write_at(object_name(region.key), region.offset + offset, data)
        except ObjectError as error:
            raise _unusable(name, region, where, error) from None

    def _find(self, name: str, where: str) -> Region:
        region = self._table.regions().get(name)
        if region is None:
            raise BadRequest(
                f"{where} lies in shared memory region {name[:100]!r}, which is not registered; register it, and "
                "unregister it when the requests that use it are answered"
            )
        return region

    # -- what registers them

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Take a part of an object. Raises: BadRequest, NotReady."""
        what = f"region {name[:100]!r}"
        if not 0 < len(name.encode()) <= NAME_BYTES or not name.isprintable():
            raise BadRequest(f"{what} has no name of 1 to {NAME_BYTES} printable bytes; give it one")
        if not 0 <= offset <= _LARGEST or not 0 < byte_size <= _LARGEST:
            raise BadRequest(
                f"{what} has offset {offset} and byte_size {byte_size}; expected an offset from 0 and a size from 1"
            )
        try:
            size = size_of(object_name(key))
        except ObjectError as error:
            raise BadRequest(f"{what} cannot have object {key[:100]!r}: {error}") from None
        if offset + byte_size > size:
            raise BadRequest(
                f"{what} is to have {byte_size} bytes from byte {offset} of object {key[:100]!r}, which has {size}; "
                "register no more than there is"
            )
        try:
            added = self._table.add(name, key, offset, byte_size)
        except TableBusy:
            raise _busy() from None
        except TableFull:
            raise BadRequest(
                f"{what} is one too many: {MOST_REGIONS} regions can be registered; unregister those that are not used"
            ) from None
        if not added:
            raise BadRequest(
                f"{what} is registered already; unregister it first, or give this one another name"
            )

    def unregister(self, name: str | None) -> None:
        """Forget a region, or all; nothing where there is none. Raises: NotReady."""
        try:
            self._table.remove(name)
        except TableBusy:
            raise _busy() from None

    def registered(self, name: str | None) -> dict[str, Region]:
        """The region of that name, or all. Raises: BadRequest."""
        regions = self._table.regions()
        if name is None:
            return regions
        if name not in regions:
            raise BadRequest(f"region {name[:100]!r} is not registered; ask for all of them, or register it")
        return {name: regions[name]}


def _unusable(name: str, region: Region, where: str, error: ObjectError) -> BadRequest:
    return BadRequest(
        f"{where} lies in shared memory region {name[:100]!r}, whose object {region.key[:100]!r} cannot be used: "
        f"{error}"
    )


def _busy() -> NotReady:
    return NotReady("another client is registering shared memory at this moment; try again")
