"""What a backend is: something that loads an artifact's file on a device and runs batches on it.

A backend is one file in this folder plus one row of the table in backends/__init__.py. It knows neither
batching nor processes nor HTTP.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from foldserve.service.artifact.signature import Signature
from foldserve.service.host.cgroups import read_limits


class LoadError(Exception):
    """A model's file cannot be loaded on the device; the text says which file, why, and the fix.

    shown: that text, for GET /info too: ours, though it may name the file's path, which shown_in() makes relative.
    cause: what a library said besides. For the log alone: such texts hold paths, node names and sources.
    """

    def __init__(self, shown: str, cause: object = "") -> None:
        super().__init__(shown, cause)
        self.shown = shown
        self.cause = str(cause)

    def __str__(self) -> str:
        return f"{self.shown}: {self.cause}" if self.cause else self.shown

    def shown_in(self, repository: Path) -> str:
        """What everybody may read of it: without the cause, and with paths from the repository on."""
        more = "; the server's log has the runtime's message" if self.cause else ""
        return self.shown.replace(f"{repository}{os.sep}", "") + more


class InsufficientMemory(LoadError):
    """The device does not have enough memory for the model now; it may have when its other users release theirs."""


class WrongOutput(ValueError):
    """A model gave something else than its signature says. The text is ours, and may go to the client."""


class OutOfMemory(Exception):
    """The device did not have enough memory for a batch of this size. The session stays usable, for fewer rows."""


class DeviceLost(Exception):
    """The device's context is broken: nothing runs on it any more in this process, and a new process may fix it."""


@dataclass(frozen=True)
class SessionOptions:
    """How a session is made; config.yaml's `session`.

    threads: intra-op threads of one run; None = the backend's share of the cores, see usable_cores().
    providers: onnxruntime's execution providers with their options, in order; empty = by the device.
    cuda_graphs: whether a GPU may run the buckets as CUDA graphs.
    tf32: whether a GPU may round FP32 to 10 bits of mantissa before it multiplies.
    nhwc: whether onnxruntime is to turn convolutions on a GPU into channels-last ones.
    memory_limit_bytes: device memory that onnxruntime may take for the session; None = from the workload.
    """

    threads: int | None = None
    providers: tuple[tuple[str, Mapping[str, Any]], ...] = field(default=())
    cuda_graphs: bool = True
    tf32: bool = False
    nhwc: bool = False
    memory_limit_bytes: int | None = None


@dataclass(frozen=True)
class Workload:
    """What a session will be given to run, as far as it is known when it is made.

    buckets: the sizes of its batches in rows, ascending; empty = any size.
    weights_bytes, row_bytes: what the weights take, and at its peak the activations of one row; None = unknown.
    shared: whether rows of several requests are run together: then dim 0 of every output must count them.
    """

    buckets: tuple[int, ...] = ()
    weights_bytes: int | None = None
    row_bytes: int | None = None
    shared: bool = True


class Session(Protocol):
    """A loaded model. It is used by the thread that made it: on a GPU, what is prepared belongs to that thread.

    notes: what an operator should know of how it runs, such as why CUDA graphs are not used; for the log and /info.
    keeps_outputs: whether what run() returns stays as it is during further runs, unless it is an input's own memory.
    """

    notes: Sequence[str]
    keeps_outputs: bool

    def host_buffers(self, rows: int) -> Mapping[str, np.ndarray] | None:
        """Memory in which a batch of so many rows is best put together; None when any memory will do.

        Returns: input name -> array [rows, ...] that the session owns and the caller fills, and of which it gives
            the first rows to run(). The same memory at every call.
        """
        ...

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one batch.

        Args:
            inputs: input name -> array, C-contiguous and possibly read-only; all with the same first dim. They are
                as they were afterwards, also after an error: the caller may run them again. A model that works in
                place is given copies.
        Returns: output name -> array, the rows in the order of the inputs' rows. It may be the session's own memory,
            or an input's: good until the next run() (but see keeps_outputs), or the inputs' next change.
        Raises: OutOfMemory, DeviceLost; any other exception when the model fails on these rows, and the session
            stays usable.
        """
        ...


class LoadSession(Protocol):
    """How each backend makes a session."""

    def __call__(
        self, path: Path, signature: Signature, device: str, options: SessionOptions, workload: Workload
    ) -> Session:
        """Load `path` on `device` ("cpu", "cuda:0"); the session takes and gives the signature's own shapes.

        Raises: LoadError, DeviceLost.
        """
        ...


def native_path(path: Path) -> str:
    """The path as native libraries take it: in UTF-8, whatever this process's locale says of file names.

    Raises: LoadError.
    """
    try:
        return os.fsencode(path).decode()
    except UnicodeDecodeError as error:
        raise LoadError(
            f"{os.fsencode(path)!r} is not a path in UTF-8, which the runtime needs; rename the folder"
        ) from error


def usable_cores() -> int:
    """The cores this process may use: its CPU mask, in which cpusets are, and its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = read_limits().cores
    return cores if quota is None else max(1, min(cores, int(quota)))
