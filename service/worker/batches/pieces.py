"""Rows that are run a piece at a time: as many of a batch as the device has room for, or as a batch may have of one
large request. And what their outputs must be."""

from collections.abc import Sequence

import numpy as np

from foldserve.service.artifact.signature import ANY, TensorSpec
from foldserve.service.backends.base import WrongOutput
from foldserve.service.worker.batches.gather import Arrays
from foldserve.service.worker.ticket_consumer import Ticket


class Pieces:
    """Rows that are run a piece at a time. at: how many of them were run. outputs: of those, in their places."""

    def __init__(self, inputs: Arrays, rows: int) -> None:
        self.inputs = inputs
        self.rows = rows
        self.at = 0
        self.outputs: list[np.ndarray] = []


class LargeRun:
    """A request of more rows than a batch may have, under way. level: its priority level. done: whether it is
    completed."""

    def __init__(self, ticket: Ticket, taken_ns: int, level: int, inputs: Arrays, gather_s: float) -> None:
        self.ticket = ticket
        self.taken_ns = taken_ns
        self.level = level
        self.pieces = Pieces(inputs, ticket.rows)
        self.gather_s = gather_s
        self.run_s = 0.0
        self.done = False


def check_output(spec: TensorSpec, output: np.ndarray, rows: int) -> None:
    """Raise WrongOutput unless an output is what the signature says, for a batch of `rows` rows."""
    fits = (
        output.dtype == spec.dtype
        and output.ndim == len(spec.batch_shape)
        and len(output) == rows
        and all(want in (ANY, got) for want, got in zip(spec.row_shape, output.shape[1:], strict=True))
    )
    if not fits:
        batch = f" from a batch of {rows} rows" if spec.counts_rows else ""
        raise WrongOutput(
            f"output {spec.name!r} came as {output.dtype} {list(spec.of_batch(output.shape))}{batch}; the signature "
            f"says {spec.datatype} {list(spec.shape)}"
        )


def copy_piece(
    parts: Sequence[np.ndarray], whole: Sequence[np.ndarray], at: int, specs: Sequence[TensorSpec]
) -> None:
    """Copy a piece's outputs to their rows; the session may use their memory for the next piece.

    Raises: WrongOutput when an output has other dims than in the pieces before.
    """
    for part, together, spec in zip(parts, whole, specs, strict=True):
        if part.shape[1:] != together.shape[1:]:
            raise WrongOutput(
                f"output {spec.name!r} has rows of {list(part.shape[1:])} in one piece of the request and of "
                f"{list(together.shape[1:])} in another: they cannot be joined; send fewer rows in a single "
                "request"
            )
        together[at : at + len(part)] = part


def overlapping(tickets: Sequence[Ticket], begin: int, end: int) -> int:
    """How many of a batch's tickets have rows among those from begin to end."""
    found = at = 0
    for ticket in tickets:
        found += at < end and begin < at + ticket.rows
        at += ticket.rows
    return found
