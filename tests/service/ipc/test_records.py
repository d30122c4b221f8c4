"""The records' two descriptions agree, and dims travel unchanged."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from foldserve.service.ipc.records import (
    DIMS_STRUCT,
    DONE,
    DONE_STRUCT,
    DONES_PER_WRITE,
    MAX_DYNAMIC_DIMS,
    NO_DIMS,
    PIPE_BUF,
    TICKET,
    TICKET_STRUCT,
    TICKETS_PER_WRITE,
    pack_dims,
)

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)


BYTE = st.integers(0, 255)


@given(st.tuples(U32, U32, BYTE, BYTE, BYTE, BYTE, U32, U64, U64, U64, U64, U64))
def test_ticket_reads_as_it_was_packed(fields: tuple[int, ...]) -> None:
    record = np.frombuffer(TICKET_STRUCT.pack(*fields, pack_dims((3, 5))), TICKET)[0]
    assert [int(record[name]) for name in TICKET.names[:-1]] == list(fields)  # type: ignore[index]
    assert record["dims"].tolist() == [3, 5] + [0] * (MAX_DYNAMIC_DIMS - 2)


def test_done_record_reads_as_it_was_packed() -> None:
    record = np.frombuffer(DONE_STRUCT.pack(1, 2, 4, 0, 0, 32, 9, 0.5, 0.25, 0.125, 0, 77), DONE)[0]
    assert (record["slot"], record["attempt"], record["state"], record["batch_rows"]) == (1, 2, 4, 32)
    assert (record["gather_s"], record["run_s"], record["scatter_s"]) == (0.5, 0.25, 0.125)
    assert (record["taken_ns"], record["needed_bytes"]) == (9, 77)


def test_writes_are_small_enough_to_be_atomic() -> None:
    assert TICKETS_PER_WRITE * TICKET.itemsize <= PIPE_BUF
    assert DONES_PER_WRITE * DONE.itemsize <= PIPE_BUF


@given(st.lists(U32, max_size=MAX_DYNAMIC_DIMS))
def test_dims_come_back_and_equal_dims_have_equal_bytes(dims: list[int]) -> None:
    packed = pack_dims(dims)
    assert list(DIMS_STRUCT.unpack(packed))[: len(dims)] == dims
    assert (packed == NO_DIMS) == (not any(dims))
