import json

import numpy as np
import pytest

from foldserve.service.artifact.datatypes import DATATYPES, numpy_dtype
from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.codecs.json_codec import decode, encode
from foldserve.service.errors import BadJson, BadTensor, ModelFailed
from tests.service.support import DOUBLE, PAIR, SEQUENCE


def one(datatype="FP32", *row, name="x"):
    return Signature((TensorSpec(name, datatype, (-1, *row)),), (TensorSpec("y", "FP32", (-1,)),))


def body(value):
    return json.dumps({"inputs": value}).encode()


def refusal(text, signature, kind=BadTensor):
    with pytest.raises(kind) as caught:
        decode(text if isinstance(text, bytes) else body(text), signature)
    return str(caught.value)


def test_a_list_is_the_only_input():
    array = decode(b'{"inputs": [[1, 2.5, -3e2]]}', DOUBLE)["x"]
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    assert array.tolist() == [[1.0, 2.5, -300.0]]


def test_named_inputs_come_in_any_order():
    arrays = decode(b'{"inputs": {"b": [1, 2], "a": [[1, 2], [3, 4]]}}', PAIR)
    assert arrays["a"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert arrays["b"].tolist() == [1, 2]
    assert arrays["b"].dtype == np.int64


def test_an_only_input_may_be_named():
    assert decode(b'{"inputs": {"x": [[1, 2, 3]]}}', DOUBLE)["x"].tolist() == [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_is_read(kind):
    assert decode(kind(b'{"inputs": [[1, 2, 3]]}'), DOUBLE)["x"].shape == (1, 3)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_is_read(datatype):
    values = [[True, False]] if datatype == "BOOL" else [[1, 0]]
    array = decode(body(values), one(datatype, 2))["x"]
    assert array.dtype == numpy_dtype(datatype)
    assert array.tolist() == values


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("pixel_values", [[1, 2]]),  # letters of the words that the screen looks for
        ("true", [[1, 2]]),
        ("null", [[0.5, 2]]),
        ('a"b', [[1, 2]]),
        ("a\\b", [[1, 2]]),
        ("Größe", [[1, 2]]),
        ("[x]", [[1, 2]]),
        ("", [[1, 2]]),
    ],
)
def test_names_of_any_letters_are_read(name, values):
    array = decode(body({name: values}), one("FP32", 2, name=name))[name]
    assert array.tolist() == values


def test_escapes_in_a_key_are_read():
    assert decode(b'{"\\u0069nputs": {"\\u0078": [[1, 2, 3]]}}', DOUBLE)["x"].shape == (1, 3)


def test_white_space_anywhere_is_read():
    assert decode(b' \n{ "inputs" :\t[ [ 1 , 2 , 3 ] ] }\r\n', DOUBLE)["x"].shape == (1, 3)


@pytest.mark.parametrize(
    ("datatype", "low", "high"),
    [(f"{sign}INT{bits}", sign, bits) for sign in ("", "U") for bits in (8, 16, 32, 64)],
)
def test_the_ends_of_an_integer_type_are_exact_and_one_beyond_is_refused(datatype, low, high):
    limits = np.iinfo(numpy_dtype(datatype).name)
    ends = [[limits.min, limits.max]]
    assert decode(body(ends), one(datatype, 2))["x"].tolist() == ends
    for beyond in (limits.min - 1, limits.max + 1):
        said = refusal([[0, beyond]], one(datatype, 2))
        assert "[0][1]" in said
        assert f"expected {limits.min} to {limits.max}" in said


def test_an_unsigned_64_bit_integer_beside_a_small_one_keeps_its_last_digit():
    # numpy makes such a pair float64 when it may choose, which would lose it
    assert decode(body([[2**64 - 1, 1]]), one("UINT64", 2))["x"].tolist() == [[2**64 - 1, 1]]


@pytest.mark.parametrize(
    ("datatype", "value"), [("FP32", 1e39), ("FP32", -3.5e38), ("FP16", 70000), ("FP16", -65520)]
)
def test_a_number_beyond_a_float_type_is_refused(datatype, value):
    assert f"out of the range of {datatype}" in refusal([[0, value]], one(datatype, 2))


def test_a_number_beyond_every_float_is_refused():
    assert "infinity" in refusal(b'{"inputs": [[1e400, 0]]}', one("FP64", 2), BadJson)


def test_the_largest_floats_are_read():
    assert decode(body([[3.4028235e38, -65504]]), one("FP32", 2))["x"].tolist()[0][1] == -65504.0
    assert decode(body([[65504, 1.7e308]][:1]), one("FP64", 2))["x"].tolist() == [[65504.0, 1.7e308]]


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "FP16", "INT64", "UINT8"])
@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("1", "the string '1'"),
        (True, "true"),
        (False, "false"),
        (None, "null"),
        ({}, "an object"),
        ({"a": 1}, "an object"),
    ],
)
def test_what_is_no_number_is_refused_with_its_place(datatype, value, shown):
    said = refusal([[1, 2], [3, value]], one(datatype, 2))
    assert f"has {shown} at [1][1]" in said
    assert datatype in said


@pytest.mark.parametrize("datatype", ["INT8", "INT64", "UINT64"])
@pytest.mark.parametrize("value", [1.5, 1.0, 1e3])
def test_a_float_is_no_integer(datatype, value):
    assert "expected an integer" in refusal(f'{{"inputs": [[0, {value}]]}}'.encode(), one(datatype, 2))


@pytest.mark.parametrize("value", [0, 1, "true", None, 1.0])
def test_only_true_and_false_are_booleans(value):
    assert "expected true or false" in refusal([[True, value]], one("BOOL", 2))


def test_a_long_string_is_not_multiplied_by_the_number_of_elements():
    # numpy would give every element the room of the longest string: 1 MB x 1001 elements
    said = refusal([[True] * 1000 + ["a" * 2**20]], one("BOOL", 1001))
    assert "[0][1000]" in said
    assert len(said) < 200


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([[1, 2, 3], [4, 5]], "the list at [1] has 2 elements and the one at [0] has 3"),
        ([[1, 2, 3], [4, 5, 6, 7]], "the list at [1] has 4 elements"),
        ([[1, 2, 3], 4], "the number 4 at [1]; expected a list of 3"),
        ([[1, 2, 3], "abc"], "the string 'abc' at [1]"),
        ([[1, 2, 3], [4, [5], 6]], "has a list at [1][1]"),
        ([[1, 2, 3], []], "the list at [1] has 0 elements"),
        ([[1, 2, 3], None], "null at [1]"),
    ],
)
def test_ragged_lists_are_refused_with_the_place(value, says):
    assert says in refusal(value, DOUBLE)


def test_lists_ragged_in_a_deep_place_are_found():
    value = np.zeros((2, 3, 4, 5)).tolist()
    value[1][2][3].append(0.0)
    assert "[1][2][3]" in refusal(value, one("FP32", 3, 4, 5))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([1, 2, 3], "for a single row, wrap it once more"),
        ([[[1, 2, 3]]], "3 dims"),
        ([[1, 2]], "dim 1 is 2; expected 3"),
        ([], "no rows"),
        ([[]], "dim 1 is 0; expected 3"),
        ([[[]]], "3 dims"),
        ({"x": []}, "no rows"),
        ({"x": 5}, "is a number; expected lists nested 2 deep"),
        ({"x": "[[1,2,3]]"}, "is a string"),
        ({"x": None}, "is null"),
        ({"x": {"data": [1]}}, "is an object"),
        ({"z": [[1, 2, 3]]}, "no input 'z'; expected x: rename or drop it"),
        ({"x": [[1, 2, 3]], "z": [[1, 2, 3]]}, "no input 'z'"),
        ({}, "input x is missing"),
    ],
)
def test_a_wrong_shape_or_name_is_refused(value, says):
    assert says in refusal(value, DOUBLE)


def test_a_row_without_elements_is_refused():
    assert "dim 1 is 0" in refusal([[], []], SEQUENCE)


def test_a_free_dim_takes_any_size_but_the_same_in_every_row():
    assert decode(body([[1, 2, 3, 4]]), SEQUENCE)["tokens"].shape == (1, 4)
    assert "ragged" in refusal([[1, 2], [3]], SEQUENCE)


def test_a_bare_list_for_several_inputs_is_refused_with_the_form_to_send():
    assert '{"inputs": {"a": [...], "b": [...]}}' in refusal([[1, 2]], PAIR)


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "nan", "inf", "-inf"])
def test_words_for_numbers_that_are_not_finite_are_refused_by_name(word):
    said = refusal(f'{{"inputs": [[1, {word}, 3]]}}'.encode(), DOUBLE, BadJson)
    assert f"{word} at line 1" in said
    assert "application/octet-stream" in said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "the body is empty"),
        (b"  \n", "the body is empty"),
        (b'{"inputs": [[1, 2, 3]', "line 1, column 22"),
        (b'{"inputs": [[1, 2, 3,]]}', "line 1, column"),
        (b'{"inputs":\n [[1, 2, 03]]}', "line 2"),
        (b"{'inputs': [[1, 2, 3]]}", "column 2"),
        (b'{"inputs": [[1, 2, 3]]} x', "column"),
        (b'{"inputs": [[0x10, 2, 3]]}', "column"),
        (b"inputs=1", "column 1"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 5000, "depth limit"),
        (b"[[1, 2, 3]]", 'the body is a list; expected {"inputs"'),
        (b'"inputs"', "the body is a string"),
        (b"1", "the body is a number"),
        (b"null", "the body is null"),
        (b"{}", "keys found: none"),
        (b'{"input": [[1, 2, 3]]}', "keys found: 'input'"),
        (b'{"inputs": 5}', '"inputs" is a number'),
        (b'{"inputs": null}', '"inputs" is null'),
        (b'{"inputs": "x"}', '"inputs" is a string'),
        (b'{"inputs": true}', '"inputs" is a boolean'),
        (b'{"inputs": [[1, 2, 3]], "id": "7"}', "unknown key 'id'"),
        (b'{"inputs": [[1, 2, 3]], "inputs": [[4, 5, 6]]}', "'inputs' appears twice"),
        (b'{"inputs": {"x": [[1, 2, 3]], "x": [[4, 5, 6]]}}', "'x' appears twice"),
        (b'{"inputs": {"x": [[1, 2, 3]], "\\u0078": [[4, 5, 6]]}}', "'x' appears twice"),
        (b'{"inputs": [], "inputs": [[1, 2, 3]]}', "'inputs' appears twice"),
    ],
)
def test_what_is_not_json_of_the_right_form_is_refused(text, says):
    assert says in refusal(text, DOUBLE, BadJson)


def test_deep_lists_are_refused_whether_or_not_they_hold_strings():
    assert "dims" in refusal(b'{"inputs": ' + b"[" * 1000 + b"]" * 1000 + b"}", DOUBLE)
    deep = b'{"inputs": ' + b"[" * 1000 + b'"x"' + b"]" * 1000 + b"}"
    with pytest.raises((BadTensor, BadJson), match=r"dims|deep"):
        decode(deep, DOUBLE)


def test_a_deep_list_behind_a_good_row_is_refused():
    deep = b'{"inputs": [[1, 2, 3], [1, 2, ' + b"[" * 900 + b"1" + b"]" * 900 + b"]]}"
    assert "[1][2]" in refusal(deep, DOUBLE)


def test_the_answer_is_model_version_and_outputs():
    said = json.loads(encode("m", "3", {"y": np.array([[0.1, 2]], "f4"), "n": np.array([7])}))
    assert said == {"model": "m", "version": "3", "outputs": {"y": [[0.1, 2.0]], "n": [7]}}
    assert list(said) == ["model", "version", "outputs"]


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_is_written(datatype):
    array = np.array([[1, 0]], numpy_dtype(datatype))
    assert json.loads(encode("m", "1", {"y": array}))["outputs"]["y"] == [[1, 0]]


@pytest.mark.parametrize(
    "array", [np.arange(6.0).reshape(2, 3).T, np.arange(12.0)[::2].reshape(2, 3), np.arange(3, dtype=">f4")]
)
def test_arrays_of_any_layout_are_written(array):
    assert json.loads(encode("m", "1", {"y": array}))["outputs"]["y"] == array.tolist()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("datatype", ["f2", "f4", "f8"])
def test_a_number_that_json_cannot_carry_is_an_error_and_never_null(value, datatype):
    array = np.zeros((2, 3), datatype)
    array[1, 2] = value
    with pytest.raises(ModelFailed, match=r"output 'y' has -?(nan|inf) at \[1, 2\].*application/x-npy"):
        encode("m", "1", {"y": array})


def test_a_float32_is_written_in_its_shortest_form():
    assert b"[[0.1]]" in encode("m", "1", {"y": np.array([[0.1]], "f4")})
