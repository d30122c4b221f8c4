"""Which model versions the server holds: one table in shared memory, of which every process has the same view.

A row is one version of one model, for as long as it is held. Whatever exists once for each version (queues, cells of
the scoreboard, metrics) is made for as many rows as the table has, before the first process starts, and addressed by
row. A row that is used again has another generation: tickets carry it, so that those of a version which is gone are
void.

    EMPTY      nobody's
    LOADING    workers load it; requests are taken as soon as one has
    READY      some worker has loaded it
    FAILED     no worker could; a worker that is started again tries again
    DRAINING   API servers take no more requests for it, and finish what they have
    UNLOADING  workers end its instances; then the row is EMPTY, of the next generation

Written by the supervisor alone (server/model_control.py); each change is followed by a control message, upon which a
process looks at the row again. A process that starts looks at all of them: whatever it missed does not matter.
"""

from collections.abc import Collection
from enum import IntEnum
from typing import Final, NamedTuple

from foldserve.service.ipc.handles import SharedMemory


class ModelState(IntEnum):
    """Where a row is in its life."""

    EMPTY = 0
    LOADING = 1
    READY = 2
    FAILED = 3
    DRAINING = 4
    UNLOADING = 5


SERVED: Final = frozenset({ModelState.LOADING, ModelState.READY, ModelState.FAILED})
"""States in which API servers take requests for the version, as soon as a worker has it."""
LOADED: Final = SERVED | {ModelState.DRAINING}
"""States in which workers have the version, or try to: also those that are started meanwhile."""

LEAVING: Final = frozenset({ModelState.DRAINING, ModelState.UNLOADING})
"""States in which processes say when they have no part in the version any more."""
_PRESENT: Final = frozenset(ModelState) - {ModelState.EMPTY}

SPEC_BYTES: Final = 4 << 20
"""Room for what processes need to know of a version (repository/model_version.py). What is not used takes no memory."""
_NAME_BYTES: Final = 256
_ERROR_BYTES: Final = 1024
_CELLS: Final = ("generation", "state", "max_batch_size", "spec_bytes")


class TableFull(Exception):
    """Every row of the table holds a version."""


class ModelKey(NamedTuple):
    """One version of one model, as it is held: row and generation tell it from whatever the row held before."""

    row: int
    generation: int
    model: str
    version: str


class ModelTable:
    """The memory; give it to every process, and map() it there. capacity: rows."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.texts_at = 8 * len(_CELLS) * capacity
        self.specs_at = self.texts_at + capacity * (_NAME_BYTES + _ERROR_BYTES)
        self.memory = SharedMemory("models", self.specs_at + capacity * SPEC_BYTES)

    def map(self) -> "MappedModelTable":
        """This process's view of the table."""
        return MappedModelTable(self)


class MappedModelTable:
    """The table in this process. generation, state, max_batch_size: by row, as views of 8-byte integers."""

    def __init__(self, table: ModelTable) -> None:
        self._map = table.memory.map()
        whole = memoryview(self._map)
        self.capacity = table.capacity
        self._texts = whole[table.texts_at : table.specs_at]
        self._specs = whole[table.specs_at :]
        cells = whole[: table.texts_at].cast("q", (len(_CELLS), table.capacity))
        self._cells = cells
        rows = table.capacity
        flat = whole[: table.texts_at].cast("q")
        self.generation, self.state, self.max_batch_size, self._spec_bytes = (
            flat[at * rows : (at + 1) * rows] for at in range(len(_CELLS))
        )

    # -- what every process reads

    def find(self, row: int, states: Collection[ModelState]) -> ModelKey | None:
        """The version in a row; None unless it is in one of these states."""
        while True:
            generation = self.generation[row]
            if self.state[row] not in states:
                return None
            key = self.key(row)
            if key.generation == generation:
                return key

    def find_all(self, states: Collection[ModelState] = _PRESENT) -> list[ModelKey]:
        """Every version in one of these states, by row."""
        return [key for row in range(self.capacity) if (key := self.find(row, states)) is not None]

    def holds(self, key: ModelKey, states: Collection[ModelState]) -> bool:
        """Whether the row still is that version's, and in one of these states."""
        return self.generation[key.row] == key.generation and self.state[key.row] in states

    def spec(self, key: ModelKey) -> bytes | None:
        """What there is to know of a version; None when its row is another's by now."""
        at = key.row * SPEC_BYTES
        data = bytes(self._specs[at : at + self._spec_bytes[key.row]])
        return data if self.generation[key.row] == key.generation else None

    def error(self, row: int) -> str:
        """Why the version in a row is FAILED; "" otherwise."""
        return self._read(row, _NAME_BYTES, _ERROR_BYTES)

    def __repr__(self) -> str:
        held = [
            f"{'/'.join(self._name(row))} {ModelState(self.state[row]).name} in row {row}.{self.generation[row]}"
            for row in range(self.capacity)
            if self.state[row] != _EMPTY
        ]
        return f"<MappedModelTable: {len(held)} of {self.capacity} rows: {', '.join(held)}>"

    # -- what the supervisor writes

    def add(self, model: str, version: str, spec: bytes, max_batch_size: int) -> ModelKey:
        """Put a version into an empty row, LOADING.

        Raises: TableFull; ValueError when the spec is larger than its room, or the version is there already.
        """
        if len(spec) > SPEC_BYTES:
            raise ValueError(
                f"what is to be known of it takes {len(spec)} bytes; at most {SPEC_BYTES} have room"
            )
        rows = range(self.capacity)
        if any(self.state[row] != _EMPTY and self._name(row) == (model, version) for row in rows):
            raise ValueError(f"model {model} version {version} is held already")
        # The one that was used least often: whatever late comers of its last version do, it is long ago.
        row = min(
            (row for row in rows if self.state[row] == _EMPTY),
            key=lambda row: self.generation[row],
            default=-1,
        )
        if row < 0:
            raise TableFull(f"all {self.capacity} rows of the model table hold a version; unload one first")
        self._write(row, 0, _NAME_BYTES, f"{model}/{version}")
        self._write(row, _NAME_BYTES, _ERROR_BYTES, "")
        self._specs[row * SPEC_BYTES : row * SPEC_BYTES + len(spec)] = spec
        self._spec_bytes[row] = len(spec)
        self.max_batch_size[row] = max_batch_size
        self.state[row] = ModelState.LOADING  # last: who sees the state sees the rest (x86-TSO)
        return ModelKey(row, self.generation[row], model, version)

    def move(self, row: int, state: ModelState, error: str = "") -> None:
        """Move a row to another state than EMPTY."""
        self._write(row, _NAME_BYTES, _ERROR_BYTES, error)
        self.state[row] = state

    def free(self, row: int) -> None:
        """Nobody has the version any more: the row is EMPTY, and all that bears its generation void."""
        self.state[row] = ModelState.EMPTY
        self.generation[row] += 1

    def key(self, row: int) -> ModelKey:
        """Of what a row holds, in whatever state: for the supervisor, which alone changes it."""
        model, version = self._name(row)
        return ModelKey(row, self.generation[row], model, version)

    def _name(self, row: int) -> tuple[str, str]:
        model, _, version = self._read(row, 0, _NAME_BYTES).partition("/")
        return model, version

    def _read(self, row: int, offset: int, nbytes: int) -> str:
        at = row * (_NAME_BYTES + _ERROR_BYTES) + offset
        return bytes(self._texts[at : at + nbytes]).rstrip(b"\0").decode(errors="replace")

    def _write(self, row: int, offset: int, nbytes: int, text: str) -> None:
        at = row * (_NAME_BYTES + _ERROR_BYTES) + offset
        self._texts[at : at + nbytes] = text.encode()[: nbytes - 1].ljust(nbytes, b"\0")


_EMPTY: Final = int(ModelState.EMPTY)
