import numpy as np
import pytest

from foldserve.service.artifact.dims import DimLink, DimRange
from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.errors import BadTensor, ConfigError
from tests.service.support import DOUBLE, PAIR, SEQUENCE


def ones(*shape, dtype="float32"):
    return np.ones(shape, dtype)


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_good_inputs_give_their_rows(rows):
    assert DOUBLE.check_inputs({"x": ones(rows, 3)}) == rows
    assert PAIR.check_inputs({"a": ones(rows, 2), "b": ones(rows, dtype="int64")}) == rows
    assert SEQUENCE.check_inputs({"tokens": ones(rows, 5, dtype="int64")}) == rows


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({}, "input x is missing"),
        ({"x": ones(1, 3), "z": ones(1, 3)}, "no input 'z'"),
        ({"y": ones(1, 3)}, "no input 'y'"),
        ({"x": ones(1, 3, dtype="float64")}, "has datatype float64; expected FP32"),
        ({"x": ones(1, 3, dtype="int32")}, "has datatype int32; expected FP32"),
        ({"x": ones(1, 3).astype(">f4")}, "expected FP32"),
        ({"x": ones(3)}, "for a single row, wrap it once more"),
        ({"x": ones(1, 3, 1)}, "3 dims"),
        ({"x": ones(1, 4)}, "dim 1 is 4; expected 3"),
        ({"x": ones(0, 3)}, "has no rows"),
    ],
)
def test_a_bad_input_is_refused_with_its_reason(inputs, says):
    with pytest.raises(BadTensor, match=says):
        DOUBLE.check_inputs(inputs)


def test_inputs_of_different_rows_are_refused():
    with pytest.raises(BadTensor, match="input 'b' has 3 rows but input 'a' has 2"):
        PAIR.check_inputs({"a": ones(2, 2), "b": ones(3, dtype="int64")})


def test_a_missing_input_is_named():
    with pytest.raises(BadTensor, match="input b is missing"):
        PAIR.check_inputs({"a": ones(2, 2)})


def test_a_free_dim_of_zero_is_refused():
    with pytest.raises(BadTensor, match="dim 1 is 0"):
        SEQUENCE.check_inputs({"tokens": ones(2, 0, dtype="int64")})


def test_a_hundred_unknown_names_do_not_make_an_endless_message():
    with pytest.raises(BadTensor) as caught:
        DOUBLE.check_names({f"{'n' * 1000}{number}": None for number in range(1000)})
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (-1, 0), (-1, -2)])
def test_a_spec_with_an_impossible_shape_cannot_be_made(shape):
    with pytest.raises(ValueError, match=r"must be -1"):
        TensorSpec("x", "FP32", shape)


@pytest.mark.parametrize("shape", [(0,), (-2,), (3, 0)])
def test_dims_below_one_are_refused_where_no_rows_are_counted_too(shape):
    with pytest.raises(ValueError, match=r"-1 or at least 1"):
        TensorSpec("x", "FP32", shape, counts_rows=False)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (-1, 3), (3, -1)])
def test_a_spec_that_counts_no_rows_has_any_dims_and_a_request_is_one_row(shape):
    spec = TensorSpec("x", "FP32", shape, counts_rows=False)
    assert spec.row_shape == shape
    assert spec.batch_shape == (-1, *shape)
    assert spec.of_batch((1, *shape)) == spec.of_rows(1, shape) == shape


def test_inputs_of_a_model_that_counts_no_rows_are_one_row_whatever_their_sizes():
    signature = Signature(
        tuple(
            TensorSpec(name, "FP32", shape, counts_rows=False)
            for name, shape in (("a", (-1,)), ("b", (2, 3)), ("c", ()))
        ),
        (TensorSpec("y", "FP32", (), counts_rows=False),),
    )
    given = {"a": np.zeros(5, "f4"), "b": np.zeros((2, 3), "f4"), "c": np.zeros((), "f4")}
    assert signature.check_inputs(given) == 1
    with pytest.raises(BadTensor, match=r"input 'b' has shape \[1, 3\]: dim 0 is 1; expected 2"):
        signature.check_inputs({**given, "b": np.zeros((1, 3), "f4")})
    with pytest.raises(BadTensor, match=r"input 'a' has no elements: dim 0 is 0"):
        signature.check_inputs({**given, "a": np.zeros(0, "f4")})


def test_dims_of_one_name_have_one_size_in_every_dim_of_a_model_that_counts_no_rows():
    def spec(name, *dims):
        return TensorSpec(name, "FP32", (-1,) * len(dims), dims, counts_rows=False)

    signature = Signature((spec("ids", "n"), spec("edges", "n", "n")), (spec("y", "n"),))
    assert signature.rows_elsewhere() == ""
    good = {"ids": np.zeros(3, "f4"), "edges": np.zeros((3, 3), "f4")}
    assert signature.check_inputs(good) == 1
    for wrong in ({"ids": np.zeros(2, "f4")}, {"edges": np.zeros((3, 4), "f4")}):
        with pytest.raises(BadTensor, match="expected one size, for both are 'n'"):
            signature.check_inputs({**good, **wrong})


def test_a_signature_counts_rows_in_all_its_tensors_or_in_none():
    with pytest.raises(ValueError, match="all or none"):
        Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,), counts_rows=False),))


def test_a_shape_that_counts_no_rows_tells_the_setting_for_such_models():
    fixed = Signature(
        (TensorSpec("x", "FP32", (1, 3), counts_rows=False),),
        (TensorSpec("y", "FP32", (), counts_rows=False),),
    )
    with pytest.raises(ValueError, match="max_batch_size: 0"):
        fixed.counting_rows(True)


def test_a_spec_of_an_unknown_datatype_cannot_be_made():
    with pytest.raises(ConfigError):
        TensorSpec("x", "BYTES", (-1,))


def test_a_signature_needs_inputs_outputs_and_different_names():
    spec = TensorSpec("x", "FP32", (-1,))
    with pytest.raises(ValueError, match="at least one input"):
        Signature((), (spec,))
    with pytest.raises(ValueError, match="at least one output"):
        Signature((spec,), ())
    with pytest.raises(ValueError, match="two inputs are named x"):
        Signature((spec, spec), (spec,))


def test_a_spec_reads_as_name_datatype_shape():
    assert str(TensorSpec("x", "FP32", (-1, 3))) == "x FP32 [-1, 3]"


IDS = TensorSpec("ids", "INT64", (-1, -1), ("N", "seq"))
MASK = TensorSpec("mask", "FP32", (-1, -1, 4), ("N", "seq", ""))
OTHER = TensorSpec("other", "FP32", (-1, -1), ("N", "length"))
NAMELESS = TensorSpec("nameless", "FP32", (-1, -1))
SQUARE = TensorSpec("square", "FP32", (-1, -1, -1), ("N", "n", "n"))
Y = TensorSpec("y", "FP32", (-1,))


@pytest.mark.parametrize("length", [1, 2, 5])
def test_inputs_that_share_a_dim_are_taken_when_they_have_one_size(length):
    signature = Signature((IDS, OTHER, MASK, NAMELESS), (Y,))
    arrays = {
        "ids": ones(3, length, dtype="int64"),
        "mask": ones(3, length, 4),
        "other": ones(3, 7),
        "nameless": ones(3, 8),
    }
    assert signature.check_inputs(arrays) == 3
    assert signature.rows_elsewhere() == ""


@pytest.mark.parametrize("length", [1, 2, 6])
def test_inputs_that_share_a_dim_are_refused_with_both_sizes_when_these_differ(length):
    with pytest.raises(BadTensor) as told:
        Signature((IDS, MASK), (Y,)).check_inputs(
            {"ids": ones(3, 5, dtype="int64"), "mask": ones(3, length, 4)}
        )
    for part in (
        f"input 'mask' has shape [3, {length}, 4]",
        f"dim 1 is {length}",
        "dim 1 of input 'ids' is 5",
        "'seq'",
    ):
        assert part in str(told.value)


def test_one_input_can_share_a_dim_with_itself():
    assert Signature((SQUARE,), (Y,)).check_inputs({"square": ones(2, 3, 3)}) == 2
    with pytest.raises(BadTensor, match=r"dim 2 is 1, and dim 1 of input 'square' is 3"):
        Signature((SQUARE,), (Y,)).check_inputs({"square": ones(2, 3, 1)})


def test_a_dim_that_shares_the_name_of_the_rows_keeps_them_from_being_counted():
    again = TensorSpec("again", "FP32", (-1, -1), ("N", "N"))
    assert "dim 1 of input 'again' is named 'N'" in Signature((again,), (Y,)).rows_elsewhere()
    rows = TensorSpec("rows", "FP32", (-1, 4), ("seq", ""))
    assert "dim 1 of input 'ids' is named 'seq', as dim 0 of input 'rows'" in (
        Signature((IDS, rows), (Y,)).rows_elsewhere()
    )


def test_a_spec_needs_a_name_for_each_dim_or_for_none():
    with pytest.raises(ValueError, match=r"2 dims \[-1, 3\] and 1 names"):
        TensorSpec("x", "FP32", (-1, 3), ("N",))


def ranged(allowed, **more):
    spec = TensorSpec("x", "FP32", (-1, -1, 4), ("rows", "length", ""), (None, allowed, None), **more)
    return Signature((spec,), (TensorSpec("y", "FP32", (-1, 3)),))


@pytest.mark.parametrize(
    ("allowed", "good", "bad", "says"),
    [
        (
            DimRange(1, 64),
            64,
            65,
            r"dim 1 \('length'\) is 65; expected 1 to 64, the sizes that the model was exported",
        ),
        (DimRange(8), 8, 7, r"dim 1 \('length'\) is 7; expected at least 8, .*: pad or cut it"),
        (DimRange(4, None, 4), 8, 10, r"is 10; expected at least 4, a multiple of 4"),
    ],
)
def test_a_size_outside_of_the_range_of_its_dim_is_refused_with_the_range(allowed, good, bad, says):
    signature = ranged(allowed)
    assert signature.check_inputs({"x": np.zeros((2, good, 4), "f4")}) == 2
    with pytest.raises(BadTensor, match=says):
        signature.check_inputs({"x": np.zeros((2, bad, 4), "f4")})


def test_no_elements_at_all_are_told_as_such_whatever_the_range():
    with pytest.raises(BadTensor, match="has no elements: dim 1 is 0"):
        ranged(DimRange(8)).check_inputs({"x": np.zeros((2, 0, 4), "f4")})


def test_an_example_shape_has_sizes_that_the_ranges_take():
    assert ranged(DimRange(8, None, 8)).inputs[0].example_shape(2) == (1, 8, 4)
    assert ranged(DimRange(1, 64)).inputs[0].example_shape(100) == (1, 64, 4)


def test_a_size_that_hangs_on_another_is_compared_with_it():
    specs = tuple(TensorSpec(name, "FP32", (-1, -1), ("rows", name)) for name in ("a", "b"))
    signature = Signature(specs, (TensorSpec("y", "FP32", (-1,)),), (DimLink("a", "b", 2, 1),))
    assert signature.check_inputs({"a": np.zeros((2, 7), "f4"), "b": np.zeros((2, 3), "f4")}) == 2
    with pytest.raises(
        BadTensor, match=r"dim 1 \('a'\) is 6, and 'b' is 3; expected 7, for it must be 2 \* 'b' \+ 1"
    ):
        signature.check_inputs({"a": np.zeros((2, 6), "f4"), "b": np.zeros((2, 3), "f4")})
