"""Where a request's tensors lie in its slot: inputs one after the other, and outputs likewise.

Both sides compute the same offsets from the signature, the rows and the dynamic dims, so that a ticket need
not carry them. An output whose shape is only known after the run is preceded by its dims.

A worker sees batches, whose dim 0 counts rows; a client the model's own shapes, which are the same but where the model
counts no rows: a request is one row then.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Final

import numpy as np

from foldserve.service.artifact.signature import ANY, Signature, TensorSpec
from foldserve.service.ipc.records import DIMS_STRUCT, MAX_DYNAMIC_DIMS
from foldserve.service.ipc.slots.allocator import ALIGNMENT

_DIMS_BYTES: Final = ALIGNMENT
"""Bytes before an output of unknown shape: its dims without rows, as uint32."""
MAX_OUTPUT_RANK: Final = _DIMS_BYTES // 4


class TensorLayout:
    """Where one model's tensors lie.

    Raises: ValueError when the signature has more dynamic dims than a ticket can carry, or an output of
        unknown shape has too many dims.
    """

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.dynamic_dims = sum(spec.row_shape.count(ANY) for spec in signature.inputs)
        if self.dynamic_dims > MAX_DYNAMIC_DIMS:
            raise ValueError(
                f"the inputs have {self.dynamic_dims} dims of any size besides rows; at most {MAX_DYNAMIC_DIMS} "
                "can be served; fix some of them when exporting"
            )
        self.fixed_outputs = all(ANY not in spec.row_shape for spec in signature.outputs)
        if not self.fixed_outputs and any(
            len(spec.row_shape) > MAX_OUTPUT_RANK for spec in signature.outputs
        ):
            raise ValueError(f"an output has more than {MAX_OUTPUT_RANK} dims besides rows")
        self.one_fixed_input = self.dynamic_dims == 0 and len(signature.inputs) == 1
        # Few sizes come again and again, and a batch asks once for each of its requests.
        self.input_places = lru_cache(maxsize=1024)(self._input_places)
        self.output_capacity = lru_cache(maxsize=1024)(self._output_capacity)
        self.input_row_bytes = (
            sum(_row_bytes(spec) for spec in signature.inputs) if not self.dynamic_dims else 0
        )

    def dims_of(self, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """The sizes of the dynamic dims, rows left out, of a request whose inputs have these shapes, in the signature's
        order."""
        return tuple(
            got
            for spec, shape in zip(self.signature.inputs, shapes, strict=True)
            for expected, got in zip(spec.row_shape, spec.row_of(shape), strict=True)
            if expected == ANY
        )

    def unpacked(self, dims: bytes) -> tuple[int, ...]:
        """The dynamic dims that a ticket carries."""
        return DIMS_STRUCT.unpack(dims)[: self.dynamic_dims] if self.dynamic_dims else ()

    def input_shapes(self, rows: int, dims: Sequence[int]) -> list[tuple[int, ...]]:
        """The shapes of the inputs in a batch."""
        left = iter(dims)
        return [
            (rows, *(int(next(left)) if dim == ANY else dim for dim in spec.row_shape))
            for spec in self.signature.inputs
        ]

    def _input_places(self, rows: int, dims: tuple[int, ...]) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """(offset, shape) of each input, from the start of the inputs."""
        places = []
        at = 0
        for spec, shape in zip(self.signature.inputs, self.input_shapes(rows, dims), strict=True):
            places.append((at, shape))
            at = _aligned(at + prod(shape) * spec.dtype.itemsize)
        return tuple(places)

    def input_bytes(self, rows: int, dims: tuple[int, ...]) -> int:
        """Bytes from the start of the first input to the end of the last."""
        offset, shape = self.input_places(rows, dims)[-1]
        return offset + prod(shape) * self.signature.inputs[-1].dtype.itemsize

    def _output_capacity(self, rows: int) -> int | None:
        """Bytes that the outputs of `rows` rows take; None when it depends on more than the rows."""
        if not self.fixed_outputs:
            return None
        at = 0
        for spec in self.signature.outputs:
            at = _aligned(at + rows * _row_bytes(spec))
        return at

    def needed_bytes(self, outputs: Sequence[np.ndarray]) -> int:
        """Bytes that these outputs take in a slot."""
        prefix = 0 if self.fixed_outputs else _DIMS_BYTES
        return sum(_aligned(array.nbytes) + prefix for array in outputs)

    def write_outputs(self, memory: memoryview, outputs: Sequence[np.ndarray]) -> None:
        """Copy the outputs of one request, in the signature's order, into its output bytes."""
        at = 0
        for array in outputs:
            if not self.fixed_outputs:
                dims = np.frombuffer(memory, np.uint32, MAX_OUTPUT_RANK, at)
                dims[: array.ndim - 1] = array.shape[1:]
                at += _DIMS_BYTES
            np.frombuffer(memory, array.dtype, array.size, at).reshape(array.shape)[...] = array
            at = _aligned(at + array.nbytes)

    def read_outputs(self, memory: memoryview, rows: int) -> dict[str, np.ndarray]:
        """The outputs of one request, in the shapes that its client is given, as views of its output bytes."""
        outputs: dict[str, np.ndarray] = {}
        at = 0
        for spec in self.signature.outputs:
            row_shape: tuple[int, ...] = spec.row_shape
            if not self.fixed_outputs:
                dims = np.frombuffer(memory, np.uint32, MAX_OUTPUT_RANK, at)
                row_shape = tuple(int(dim) for dim in dims[: len(row_shape)])
                at += _DIMS_BYTES
            size = rows * prod(row_shape)
            shape = spec.of_rows(rows, row_shape)
            outputs[spec.name] = np.frombuffer(memory, spec.dtype, size, at).reshape(shape)
            at = _aligned(at + size * spec.dtype.itemsize)
        return outputs


def _row_bytes(spec: TensorSpec) -> int:
    return prod(spec.row_shape) * spec.dtype.itemsize


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
