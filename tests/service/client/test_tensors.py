"""What callers give, as it is sent: any memory, any of the numbers that are served, and lists of them."""

import numpy as np
import pytest

from foldserve.service.artifact.datatypes import DATATYPES, numpy_dtype
from foldserve.service.client.errors import BadInput
from foldserve.service.client.tensors import needs_signature, tensors

A = np.arange(6, dtype="f4").reshape(2, 3)
READ_ONLY = A.copy()
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    "way",
    [
        np.asfortranarray(A),
        A.astype(">f4"),
        np.stack([A, A], -1)[..., 0],
        A[::-1][::-1],
        np.broadcast_to(A, (2, 3)),
        READ_ONLY,
        A.view(np.matrix),
        np.frombuffer(b"." + A.tobytes(), "f4", offset=1).reshape(2, 3),
    ],
    ids=["Fortran", "big-endian", "strided", "reversed", "broadcast", "read-only", "matrix", "unaligned"],
)
def test_array_may_lie_in_memory_in_any_way(way):
    (sent,) = tensors({"x": way}, {}, "m")
    assert (sent.datatype, sent.array.shape) == ("FP32", (2, 3))
    assert b"".join((sent.array.data,)) == A.tobytes()


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_has_its_word(datatype):
    (sent,) = tensors({"x": np.ones((1, 2), numpy_dtype(datatype).newbyteorder(">"))}, {}, "m")
    assert sent.datatype == datatype


@pytest.mark.parametrize(
    ("given", "shape"),
    [(np.float32(3), ()), (np.array(3, "f4"), ()), (np.zeros((0, 3), "f4"), (0, 3)), ([], (0,)), (2, ())],
)
def test_shape_is_that_of_what_was_given_also_without_dims_or_elements(given, shape):
    (sent,) = tensors({"x": given}, {"x": "FP32"}, "m")
    assert sent.array.shape == shape
    assert b"".join((sent.array.data,)) == np.asarray(given, "<f4").tobytes()


def test_numbers_and_lists_take_the_models_datatype_and_nothing_is_turned_into_another_kind():
    def sent(given, datatype):
        return tensors({"x": given}, {"x": datatype}, "m")[0].array

    assert sent([[1, 2.5]], "FP16").dtype == np.float16
    assert sent([255], "UINT8").dtype == np.uint8
    assert sent([True], "BOOL").dtype == np.bool_
    assert sent(2**64 - 1, "UINT64").item() == 2**64 - 1
    for given, datatype in (
        ([1.5], "INT64"),
        ([True], "FP32"),
        ([256], "UINT8"),
        ([-1], "UINT64"),
        ([1], "BOOL"),
        ([[1], [2, 3]], "FP32"),
        (["1"], "FP32"),
        ([None], "FP32"),
        ([1.0], "BF16"),
    ):
        with pytest.raises(BadInput, match=f"input 'x' is {datatype}, and what was given is not"):
            sent(given, datatype)


def test_what_is_no_number_is_refused_with_what_is_one():
    for given in (np.array(["a"]), np.array([object()]), np.array([1j]), np.array(["2026-01-01"], "M8[D]")):
        with pytest.raises(BadInput, match=r"expected numbers \(BOOL, .*: convert it with .astype"):
            tensors({"x": given}, {}, "m")


def test_names_are_the_models():
    assert needs_signature(A)
    assert needs_signature({"a": A, "b": [1]})
    assert not needs_signature({"a": A, "b": np.int64(1)})
    assert tensors(A, {"a": "FP32"}, "m")[0].name == "a"
    with pytest.raises(BadInput, match="model 'm' has the inputs a, b; give each by its name"):
        tensors(A, {"a": "FP32", "b": "FP32"}, "m")
    with pytest.raises(BadInput, match="model 'm' has no input 'c'; expected a"):
        tensors({"c": [1]}, {"a": "FP32"}, "m")
