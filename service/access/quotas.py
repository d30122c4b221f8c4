"""A caller's limits, over all API servers: rows per second, and the rows that it has waiting in a model's queue.

Rows per second are a token bucket that holds those of one second, kept as a virtual clock (GCRA, ITU-T I.371): the time
at which the bucket is full again. All API servers read and write the one clock without a lock: of two requests that
two of them admit in the same microsecond one may go uncounted, and no more than that is ever given away. A request of
more rows than the bucket holds is admitted when that is full, and paid for afterwards.

Waiting rows are counted by each API server for itself and summed when they are looked at, as on the scoreboard.
"""

from typing import Any, Final

from foldserve.service.access.key_file import MOST_LIMITED, Key
from foldserve.service.ipc.handles import SharedMemory

BUCKET_NS: Final = 1_000_000_000
"""The bucket holds the rows of so long a time."""
NO_SLOT: Final = -1
_FARTHEST_NS: Final = 2**63 - 1
"""What a clock can hold: 292 years, which millions of rows at one row in a quarter of an hour would pass."""


class Quotas:
    """The shared counts; made before any other process. models: rows of the model table."""

    def __init__(self, api_servers: int, models: int) -> None:
        self.api_servers = api_servers
        self.models = models
        cells = MOST_LIMITED * (1 + api_servers * models)
        self.memory = SharedMemory("quotas", cells * 8)

    def map(self) -> "MappedQuotas":
        """This process's view of them."""
        return MappedQuotas(self)


class MappedQuotas:
    """full_at_ns: [slot] CLOCK_MONOTONIC when the bucket is full again (every API server). waiting_rows: [API server,
    slot, model] (that API server, and the supervisor once it is dead)."""

    def __init__(self, quotas: Quotas) -> None:
        self._map = quotas.memory.map()
        whole = memoryview(self._map)
        clocks = MOST_LIMITED * 8
        shape = [quotas.api_servers, MOST_LIMITED, quotas.models]
        self.api_servers = quotas.api_servers
        self.full_at_ns: Any = whole[:clocks].cast("q")
        self.waiting_rows: Any = whole[clocks:].cast("q", shape)
        self._waiting = whole[clocks:]

    def restart(self, slot: int) -> None:
        """The slot's limits are others: its bucket is full."""
        self.full_at_ns[slot] = 0

    def api_server_died(self, index: int) -> None:
        """It has nothing waiting any more."""
        nbytes = len(self._waiting) // self.api_servers
        self._waiting[index * nbytes : (index + 1) * nbytes] = bytes(nbytes)

    def of(self, key: Key, slot: int, api_server: int) -> "Quota | None":
        """A key's limits in an API server; None for a key without."""
        return Quota(key, slot, api_server, self) if key.limited else None


class Quota:
    """One caller's limits as one API server applies them. Owned by its event loop thread."""

    def __init__(self, key: Key, slot: int, api_server: int, quotas: MappedQuotas) -> None:
        self.name = key.name
        self.rows_per_s = key.rows_per_s
        self.queue_share = key.queue_share
        self._row_ns = 1e9 / key.rows_per_s if key.rows_per_s else 0.0
        self._slot = slot
        self._mine = api_server
        self._api_servers = quotas.api_servers
        self._full_at_ns = quotas.full_at_ns
        self._waiting = quotas.waiting_rows

    def wait_s(self, rows: int, now_ns: int) -> float:
        """Seconds until so many rows may be asked for; 0 = now. now_ns: CLOCK_MONOTONIC."""
        if not self._row_ns:
            return 0.0
        full_at_ns: int = self._full_at_ns[self._slot]
        allowed_ns = max(0.0, BUCKET_NS - rows * self._row_ns)
        return max(0.0, full_at_ns - now_ns - allowed_ns) / 1e9

    def take(self, rows: int, now_ns: int) -> None:
        """So many rows were asked for."""
        if self._row_ns:
            full_at_ns: int = self._full_at_ns[self._slot]
            paid_ns = max(full_at_ns, now_ns) + int(rows * self._row_ns)
            self._full_at_ns[self._slot] = min(paid_ns, _FARTHEST_NS)

    def most_rows(self, queue_rows: int) -> int:
        """That it may have waiting in a queue with room for so many."""
        return max(1, int(self.queue_share * queue_rows))

    def waiting_rows(self, model: int) -> int:
        """What it has waiting in a model's queue, over all API servers. model: its row of the model table."""
        rows = 0
        for api_server in range(self._api_servers):
            rows += self._waiting[api_server, self._slot, model]
        return rows

    def count(self, model: int, rows: int) -> None:
        """So many rows more wait, or fewer where that is negative."""
        if self.queue_share:
            self._waiting[self._mine, self._slot, model] += rows
