"""The keys in force, in shared memory. The supervisor writes them; an API server reads them when it is told, and at
its start. What is there is digests, no keys.

A reader that meets a write sees a sum that is wrong, and keeps what it has: it is told again after the write.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import orjson

from foldserve.service.access.key_file import MOST_LIMITED, Key
from foldserve.service.access.quotas import NO_SLOT, MappedQuotas
from foldserve.service.ipc.handles import SharedMemory

_TABLE_BYTES: Final = 32 * 2**20
"""Room for the longest file; untouched pages cost nothing."""
_SUM_BYTES: Final = 32
_HEAD_BYTES: Final = _SUM_BYTES + 8


class KeyTable:
    """Made before any other process."""

    def __init__(self) -> None:
        self._memory = SharedMemory("keys", _TABLE_BYTES)
        self._slots: dict[str, int] = {}
        self._limits: dict[str, tuple[float, float]] = {}

    def write(self, keys: Sequence[Key], quotas: MappedQuotas) -> None:
        """Put these in force. A key that keeps its name keeps what is counted of it. Supervisor only."""
        limited = {key.name: key for key in keys if key.limited}
        slots = {name: slot for name, slot in self._slots.items() if name in limited}
        free = iter(sorted(set(range(MOST_LIMITED)) - set(slots.values())))
        for name, key in limited.items():
            slot = slots.setdefault(name, -1)
            if slot < 0:
                slot = slots[name] = next(free)
            if self._limits.get(name) != (key.rows_per_s, key.queue_share):
                quotas.restart(slot)
        self._slots = slots
        self._limits = {name: (key.rows_per_s, key.queue_share) for name, key in limited.items()}
        document = orjson.dumps([_written(key, slots.get(key.name, NO_SLOT)) for key in keys])
        with self._memory.map() as memory:
            memory[_HEAD_BYTES : _HEAD_BYTES + len(document)] = document
            memory[_SUM_BYTES:_HEAD_BYTES] = len(document).to_bytes(8, "little")
            memory[:_SUM_BYTES] = hashlib.sha256(document).digest()

    def read(self) -> list[tuple[Key, int]] | None:
        """The keys and their slots; None while they are being written."""
        with self._memory.map() as memory:
            length = int.from_bytes(memory[_SUM_BYTES:_HEAD_BYTES], "little")
            document = memory[_HEAD_BYTES : _HEAD_BYTES + length]
            if hashlib.sha256(document).digest() != memory[:_SUM_BYTES]:
                return None
        return [_read(one) for one in orjson.loads(document)]


def _written(key: Key, slot: int) -> list[Any]:
    models = None if key.models is None else list(key.models)
    return [key.name, key.digest.hex(), key.scopes, models, key.rows_per_s, key.queue_share, slot]


def _read(fields: list[Any]) -> tuple[Key, int]:
    name, digest, scopes, models, rows_per_s, queue_share, slot = fields
    models = None if models is None else tuple(models)
    return Key(name, bytes.fromhex(digest), scopes, models, rows_per_s, queue_share), slot
