"""Tensors in a slot: both sides find them at the same places, aligned and apart."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.ipc.records import MAX_DYNAMIC_DIMS, pack_dims
from foldserve.service.ipc.slots.allocator import ALIGNMENT
from foldserve.service.ipc.slots.tensor_layout import MAX_OUTPUT_RANK, TensorLayout

TYPES = st.sampled_from(["FP32", "FP64", "INT64", "UINT8", "FP16", "BOOL"])
SHAPES = st.lists(st.one_of(st.integers(1, 4), st.just(-1)), max_size=3)


@st.composite
def signatures(draw: st.DrawFn, counts_rows: bool = True) -> Signature:
    def specs(letter: str) -> tuple[TensorSpec, ...]:
        shapes = draw(st.lists(st.tuples(TYPES, SHAPES), min_size=1, max_size=3))
        return tuple(
            TensorSpec(
                f"{letter}{i}", word, (-1, *shape) if counts_rows else tuple(shape), counts_rows=counts_rows
            )
            for i, (word, shape) in enumerate(shapes)
        )

    return Signature(specs("x"), specs("y"))


def arrays(specs: tuple[TensorSpec, ...], rows: int, seed: int, smallest: int = 1) -> list[np.ndarray]:
    """As a batch. smallest: of the dims of any size."""
    random = np.random.default_rng(seed)
    shapes = [
        (rows, *(int(random.integers(smallest, 6)) if d == -1 else d for d in s.row_shape)) for s in specs
    ]
    return [
        random.integers(0, 2, shape).astype(spec.dtype) for spec, shape in zip(specs, shapes, strict=True)
    ]


@given(signatures(), st.integers(1, 5), st.integers(0, 1000))
def test_inputs_lie_apart_aligned_and_in_their_shapes(signature: Signature, rows: int, seed: int) -> None:
    layout = TensorLayout(signature)
    inputs = arrays(signature.inputs, rows, seed)
    dims = layout.dims_of([array.shape for array in inputs])
    assert layout.unpacked(pack_dims(dims)) == dims
    end = 0
    for array, (offset, shape) in zip(inputs, layout.input_places(rows, dims), strict=True):
        assert offset >= end
        assert offset % ALIGNMENT == 0
        assert shape == array.shape
        end = offset + array.nbytes
    assert layout.input_bytes(rows, dims) == end


@given(signatures(), st.integers(1, 5), st.integers(0, 1000))
def test_outputs_come_back_as_they_were_written_within_the_room_they_need(
    signature: Signature, rows: int, seed: int
) -> None:
    layout = TensorLayout(signature)
    outputs = arrays(signature.outputs, rows, seed)
    room = layout.needed_bytes(outputs)
    exact = layout.output_capacity(rows)
    assert exact is None or exact == room
    memory = memoryview(bytearray(room))
    layout.write_outputs(memory, outputs)
    read = layout.read_outputs(memory, rows)
    for spec, output in zip(signature.outputs, outputs, strict=True):
        np.testing.assert_array_equal(read[spec.name], output)


@given(signatures(counts_rows=False), st.integers(0, 1000))
def test_a_request_of_a_model_that_counts_no_rows_is_one_row_of_a_batch(
    signature: Signature, seed: int
) -> None:
    layout = TensorLayout(signature)
    batch = arrays(signature.inputs, 1, seed)
    assert all(spec.counts_rows is False for spec in signature.inputs)
    sent = [array.reshape(array.shape[1:]) for array in batch]
    assert (
        signature.check_inputs({spec.name: array for spec, array in zip(signature.inputs, sent, strict=True)})
        == 1
    )
    dims = layout.dims_of([array.shape for array in sent])
    assert layout.unpacked(pack_dims(dims)) == dims
    assert [shape for _, shape in layout.input_places(1, dims)] == [array.shape for array in batch]


@given(signatures(counts_rows=False), st.integers(0, 1000))
def test_outputs_of_a_model_that_counts_no_rows_come_back_in_its_own_shapes_and_may_be_empty(
    signature: Signature, seed: int
) -> None:
    layout = TensorLayout(signature)
    batch = arrays(signature.outputs, 1, seed, smallest=0)
    room = layout.needed_bytes(batch)
    assert layout.output_capacity(1) in (None, room)
    memory = memoryview(bytearray(room))
    layout.write_outputs(memory, batch)
    read = layout.read_outputs(memory, 1)
    for spec, output in zip(signature.outputs, batch, strict=True):
        assert read[spec.name].shape == output.shape[1:]
        np.testing.assert_array_equal(read[spec.name], output[0])


def test_more_dynamic_dims_than_a_ticket_carries_are_refused() -> None:
    many = TensorSpec("x", "FP32", (-1,) * (MAX_DYNAMIC_DIMS + 2))
    with pytest.raises(ValueError, match="11 dims of any size"):
        TensorLayout(Signature((many,), (TensorSpec("y", "FP32", (-1, 1)),)))


def test_output_with_more_dims_than_its_prefix_holds_is_refused() -> None:
    deep = TensorSpec("y", "FP32", (-1,) * (MAX_OUTPUT_RANK + 2))
    with pytest.raises(ValueError, match="more than 16 dims"):
        TensorLayout(Signature((TensorSpec("x", "FP32", (-1, 1)),), (deep,)))
