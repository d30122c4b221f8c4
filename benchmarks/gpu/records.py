"""What is measured, a line of JSON each: appended to a file as soon as it is there, read again by the report."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar, Final


@dataclass(frozen=True)
class Machine:
    """What it ran on. "none" where there is no such thing, "unknown" where it could not be told."""

    kind: ClassVar[str] = "machine"
    date: str
    commit: str
    foldserve: str
    device: str
    driver: str
    cuda: str
    cudnn: str
    onnxruntime: str
    torch: str
    python: str
    processor: str
    cores: int

    @property
    def key(self) -> tuple[object, ...]:
        """One per run; the last one read counts."""
        return (self.kind, self.date)


@dataclass(frozen=True)
class Cell:
    """One batch size, run again and again without a server.

    way: a key of in_process.WAYS. sessions: that run side by side.
    p50_ms, p99_ms: of one run with its copies. device: mean utilisation, 0 to 1; None when nobody tells.
    cpu_s: CPU seconds of the process per 1,000 rows. notes: how the session runs, in its own words.
    """

    kind: ClassVar[str] = "cell"
    model: str
    precision: str
    way: str
    batch: int
    sessions: int
    rows_s: float
    p50_ms: float
    p99_ms: float
    device: float | None
    cpu_s: float
    notes: list[str] = field(default_factory=list)

    @property
    def key(self) -> tuple[object, ...]:
        """What it is a figure of."""
        return (self.kind, self.model, self.precision, self.way, self.batch)


@dataclass(frozen=True)
class Served:
    """One load on a foldserve. Requests have one row each.

    cpu_s: CPU seconds of the whole server per 1,000 rows; api_cores, worker_cores: cores that the busiest API server,
    the busiest worker used; generator_cores: that the load generator used, all its threads.
    refused: answered 429; failed: anything else but 200, and what was never answered.
    """

    kind: ClassVar[str] = "served"
    model: str
    precision: str
    api_servers: int
    connections: int
    rows_s: float
    p50_ms: float
    p99_ms: float
    device: float | None
    cpu_s: float
    api_cores: float
    worker_cores: float
    generator_cores: float
    refused: int
    failed: int

    @property
    def key(self) -> tuple[object, ...]:
        """What it is a figure of."""
        return (self.kind, self.model, self.precision, self.api_servers, self.connections)


@dataclass(frozen=True)
class Killed:
    """Workers killed with kill -9 under load.

    kills: how often. back_s: the longest time until a worker served again. slowest_ms: the slowest answer.
    """

    kind: ClassVar[str] = "killed"
    model: str
    precision: str
    api_servers: int
    connections: int
    seconds: float
    kills: int
    back_s: float
    answered: int
    refused: int
    failed: int
    unanswered: int
    slowest_ms: float

    @property
    def key(self) -> tuple[object, ...]:
        """What it is a figure of."""
        return (self.kind, self.model, self.precision)


@dataclass(frozen=True)
class Begun:
    """A task begins: what failed in an earlier try of it is out of date."""

    kind: ClassVar[str] = "begun"
    task: str

    @property
    def key(self) -> tuple[object, ...]:
        """What it is about."""
        return (self.kind, self.task)


@dataclass(frozen=True)
class Failure:
    """What could not be measured, and why. task: in which it was tried."""

    kind: ClassVar[str] = "failure"
    what: str
    why: str
    task: str = ""

    @property
    def key(self) -> tuple[object, ...]:
        """What it is about."""
        return (self.kind, self.what)


Record = Machine | Cell | Served | Killed | Begun | Failure
_KINDS: Final[dict[str, type[Record]]] = {
    one.kind: one for one in (Machine, Cell, Served, Killed, Begun, Failure)
}


def to_line(record: Record) -> str:
    """One line of JSON, without its end; numbers to seven digits."""
    rounded = {
        name: float(f"{value:.7g}") if isinstance(value, float) else value
        for name, value in asdict(record).items()
    }
    return json.dumps({"kind": record.kind, **rounded})


def from_line(line: str) -> Record:
    """The record of a line. Raises: ValueError when it is none."""
    try:
        given = json.loads(line)
        record: Record = _KINDS[given.pop("kind")](**given)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{line[:100]!r} is no record of benchmarks.gpu: {error!r}") from error
    return record


def append(path: Path, record: Record) -> None:
    """Write a record behind the others; it is in the file when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(to_line(record) + "\n")


def mend(path: Path) -> None:
    """Take away a last line that was cut off with the run that wrote it: the next one begins on a line of its own."""
    with path.open("a+b") as file:
        file.seek(0)
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def read(paths: Iterable[Path]) -> list[Record]:
    """The records of all files: of several with one key the last, and of failures those of the last try.

    A last line that has no end was cut off with the run that wrote it, and is left out. Raises: OSError; ValueError
    for a line that is no record.
    """
    found: dict[tuple[object, ...], Record] = {}
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.strip() and line.endswith("\n"):
                record = from_line(line)
                if isinstance(record, Begun):
                    found = {
                        key: one
                        for key, one in found.items()
                        if not (isinstance(one, Failure) and one.task == record.task)
                    }
                found.pop(record.key, None)  # the later one stands where it was measured
                found[record.key] = record
    return list(found.values())
