"""Which rows run together: the plan of batches for some requests, their rows gathered and cut apart again.

    requests (1..n rows each)  ->  batches of at most max_batch_size rows  ->  each request's outputs

Rows count, not requests. Requests meet in a batch only when every input has the same datatype and row shape;
a request larger than a batch is cut into pieces and joined again; a batch is padded up to its bucket.

Pure: no clock, no I/O, no model, no metric. instance.py carries the plans out.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Arrays = Mapping[str, np.ndarray]
"""Input or output name -> array; the first dim of each counts the rows."""


@dataclass(frozen=True)
class Piece:
    """Rows start..stop-1 of one request (`request` is its place in the list that plan() was given)."""

    request: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many rows."""
        return self.stop - self.start


@dataclass(frozen=True)
class Batch:
    """Pieces that run together, in the order of their rows."""

    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        """Rows of all pieces, without padding."""
        return sum(piece.rows for piece in self.pieces)

    def halves(self) -> tuple["Batch", "Batch"]:
        """The first and the second half of the pieces; for a batch of at least two."""
        middle = len(self.pieces) // 2
        return Batch(self.pieces[:middle]), Batch(self.pieces[middle:])


def rows_of(inputs: Arrays) -> int:
    """How many rows a request holds."""
    return len(next(iter(inputs.values())))


def group_key(inputs: Arrays) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """What requests must share to meet in a batch: every input's name, datatype and row shape."""
    return tuple(sorted((name, array.dtype.str, array.shape[1:]) for name, array in inputs.items()))


def plan(requests: Sequence[Arrays], max_batch_size: int) -> tuple[Batch, ...]:
    """The batches that run all rows of all requests.

    Requests keep their order within a group, and groups run in the order of their first request. A request is
    cut only when it is larger than a whole batch: otherwise a request that does not fit starts a new one.
    """
    groups: dict[object, list[int]] = {}
    for index, inputs in enumerate(requests):
        groups.setdefault(group_key(inputs), []).append(index)
    batches: list[Batch] = []
    for members in groups.values():
        open_pieces: list[Piece] = []
        room = max_batch_size
        for index in members:
            for piece in pieces_of(index, rows_of(requests[index]), max_batch_size):
                if piece.rows > room:
                    batches.append(Batch(tuple(open_pieces)))
                    open_pieces, room = [], max_batch_size
                open_pieces.append(piece)
                room -= piece.rows
        batches.append(Batch(tuple(open_pieces)))
    return tuple(batches)


def pieces_of(request: int, rows: int, max_batch_size: int) -> list[Piece]:
    """A request in pieces of at most max_batch_size rows."""
    return [
        Piece(request, start, min(start + max_batch_size, rows)) for start in range(0, rows, max_batch_size)
    ]


def bucket_for(rows: int, buckets: Sequence[int]) -> int:
    """The smallest bucket (ascending) that takes `rows`; `rows` itself when there are no buckets."""
    if not buckets:
        return rows
    return buckets[bisect_left(buckets, rows)]


def gather(requests: Sequence[Arrays], batch: Batch, bucket: int) -> dict[str, np.ndarray]:
    """The batch's rows, one array per input, padded to `bucket` rows.

    The padding repeats the last row: values that the model can surely take, which zeros need not be. A batch
    of one piece without padding is not copied; the arrays may then be read-only.
    """
    first = requests[batch.pieces[0].request]
    rows = batch.rows
    if len(batch.pieces) == 1 and rows == bucket:
        piece = batch.pieces[0]
        return {name: array[piece.start : piece.stop] for name, array in first.items()}
    gathered = {}
    for name, array in first.items():
        target = np.empty((bucket, *array.shape[1:]), array.dtype)
        at = 0
        for piece in batch.pieces:
            target[at : at + piece.rows] = requests[piece.request][name][piece.start : piece.stop]
            at += piece.rows
        target[rows:] = target[rows - 1]
        gathered[name] = target
    return gathered


def scatter(outputs: Arrays, batch: Batch, bucket: int) -> list[dict[str, np.ndarray]]:
    """Each piece's part of the outputs, in the order of the pieces; the padding is dropped.

    The parts are copies when the batch holds more than one piece: a view would keep the whole batch's outputs
    alive until the slowest client has its answer.
    Raises: ValueError when an output does not have one row per input row.
    """
    for name, array in outputs.items():
        if array.ndim == 0 or len(array) != bucket:
            raise ValueError(
                f"output {name!r} has shape {list(array.shape)} for {bucket} input rows; expected one "
                "output row per input row"
            )
    parts = []
    at = 0
    shared = len(batch.pieces) > 1 or batch.rows < bucket
    for piece in batch.pieces:
        cut = {name: array[at : at + piece.rows] for name, array in outputs.items()}
        parts.append({name: array.copy() for name, array in cut.items()} if shared else cut)
        at += piece.rows
    return parts


def join(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """One request's outputs out of its pieces' outputs, in order."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def sizes_to_warm(buckets: Sequence[int], max_batch_size: int) -> tuple[int, ...]:
    """The batch sizes to run before a model is ready: every bucket, or powers of two up to the largest."""
    if buckets:
        return tuple(buckets)
    powers = (2**exponent for exponent in range(max_batch_size.bit_length()))
    return tuple(sorted({*powers, max_batch_size}))
