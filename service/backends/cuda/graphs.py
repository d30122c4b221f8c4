"""Whether a model's buckets are run as CUDA graphs, which of them, and why not. Decides; makes nothing itself.

A graph is what one run of a bucket put onto the stream, recorded: to run it again is one call instead of one for each
kernel. It holds addresses, sizes and launches, so memory and shapes must stay as they were, every node must be on the
GPU, and nothing that the CPU computes may differ from run to run. onnxruntime says whether it can; what it cannot see
is looked at here. Graphs are recorded while the model is loaded: meanwhile no other thread of the process may
allocate on any GPU.
"""

import gc
import logging
import re
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from foldserve.service.artifact.signature import ANY, Signature
from foldserve.service.backends.base import DeviceLost, LoadError, OutOfMemory, SessionOptions

_log = logging.getLogger("foldserve.worker")

_REASON_LENGTH = 300
_PREFIX = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")


class Capturing(Protocol):
    """A session that can record graphs, if it was opened for them.

    no_graphs: why it cannot, as far as it knows before it tries; "" when nothing is known against it.
    """

    no_graphs: str

    def capture(self, rows: int) -> None:
        """Record the graph of one bucket. Raises whatever the run raises."""
        ...

    def close(self) -> None:
        """Give back all that it holds on the device."""
        ...


S = TypeVar("S", bound=Capturing)


def with_graphs(
    open_session: Callable[[bool], S], against: str, buckets: Sequence[int]
) -> tuple[S, list[str]]:
    """Open a session with a graph for every bucket that can have one, else a plain one.

    Args:
        open_session: opens the session, for graphs or not; raises LoadError, DeviceLost.
        against: why not to try; "" when nothing is known against it.
        buckets: ascending.
    Returns: the session, and notes for the operator: what runs as a graph, and why the rest does not.
    Raises: LoadError when the session cannot be opened without graphs either; DeviceLost.
    """
    wanted = sorted(
        buckets, reverse=True
    )  # the largest first: the smaller ones fit into the memory it leaves
    too_large: list[int] = []
    reason = against
    while wanted and not reason:
        try:
            session = open_session(True)
        except LoadError as error:  # control flow, nodes on the CPU: onnxruntime looks when it opens the file
            reason = _refused(str(error.__cause__ or error))
        else:
            failure = _first_failure(session, wanted)
            if failure is None:
                return session, _notes(wanted, too_large)
            at, full, text = failure
            if full:
                too_large += wanted[: at + 1]
                wanted = wanted[at + 1 :]
            else:
                reason = session.no_graphs or _refused(text)
            # What the run raised holds its frames, often in a cycle with itself, and in them onnxruntime's session.
            gc.collect()
            session.close()
    gc.collect()  # likewise what opening raised: the next session needs the memory
    reason = reason or "the device does not have enough memory to record one"
    return open_session(False), [f"CUDA graphs are not used: {_short(reason)}"]


def _refused(text: str) -> str:
    """A reason that everybody may read: a runtime's own text names nodes and files, and is for the log."""
    _log.warning("CUDA graphs are not used: %s", _short(text))
    return "the runtime cannot record this model; the server's log says why"


def reason_against(options: SessionOptions, signature: Signature, buckets: Sequence[int], asked: bool) -> str:
    """What speaks against graphs before a session is opened; "" when nothing does.

    Args:
        asked: whether the provider's options, in which config.yaml has the last word, ask for graphs.
    """
    if not options.cuda_graphs:
        return "`session: cuda_graphs` is false in config.yaml"
    if not asked:
        return "`session: providers` in config.yaml decides how the model runs"
    for what, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs:
            if ANY in spec.row_shape:
                return f"{what} {spec.name!r} has dims of any size beside the rows: {list(spec.shape)}"
    return "" if buckets else "there are no batch buckets"


def _first_failure(session: Capturing, wanted: Sequence[int]) -> tuple[int, bool, str] | None:
    """Record every bucket.

    Returns: of the first that cannot be recorded its place, whether memory was missing, and why; None when all could.
    """
    if session.no_graphs:
        return 0, False, session.no_graphs
    for at, rows in enumerate(wanted):
        try:
            session.capture(rows)
        except DeviceLost:
            raise
        except Exception as error:  # what a run raises has no base of its own
            return at, isinstance(error, OutOfMemory), str(error)
    return None


def _notes(captured: Sequence[int], too_large: Sequence[int]) -> list[str]:
    notes = [f"CUDA graphs for batches of {', '.join(map(str, sorted(captured)))} rows"]
    if too_large:
        sizes = ", ".join(map(str, sorted(too_large)))
        notes.append(
            f"no CUDA graph for batches of {sizes} rows: the device does not have enough memory to record it"
        )
    return notes


def _short(reason: str) -> str:
    line = " ".join(_PREFIX.sub("", reason).split())
    return line if len(line) <= _REASON_LENGTH else line[:_REASON_LENGTH] + " ..."
