import numpy as np
import pytest

from foldserve.service.artifact.datatypes import (
    DATATYPES,
    is_served,
    itemsize,
    numpy_dtype,
    word_for,
    word_for_onnx,
)
from foldserve.service.errors import ConfigError

SIZES = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "FP32": 4,
    "FP64": 8,
}


def test_the_datatypes_are_those_of_the_open_inference_protocol_without_bytes():
    assert set(DATATYPES) == set(SIZES)


@pytest.mark.parametrize("word", DATATYPES)
def test_a_word_and_its_dtype_are_each_others(word):
    assert word_for(numpy_dtype(word)) == word
    assert word_for(numpy_dtype(word).newbyteorder(">")) == word
    assert itemsize(word) == SIZES[word]
    assert is_served(numpy_dtype(word))


@pytest.mark.parametrize("word", DATATYPES)
def test_every_dtype_is_little_endian(word):
    one = np.ones(1, numpy_dtype(word)).tobytes()
    assert one == np.ones(1, numpy_dtype(word).newbyteorder("<")).tobytes()


@pytest.mark.parametrize(
    ("elem_type", "word"),
    [
        ("tensor(float)", "FP32"),
        ("tensor(double)", "FP64"),
        ("tensor(float16)", "FP16"),
        ("tensor(int64)", "INT64"),
        ("tensor(uint8)", "UINT8"),
        ("tensor(bool)", "BOOL"),
    ],
)
def test_onnx_types_have_their_words(elem_type, word):
    assert word_for_onnx(elem_type) == word


@pytest.mark.parametrize(
    "ask", [lambda: numpy_dtype("BYTES"), lambda: numpy_dtype("BF16"), lambda: numpy_dtype("fp32")]
)
def test_a_word_that_is_not_served_is_refused_with_the_list(ask):
    with pytest.raises(ConfigError, match="expected one of BOOL, UINT8"):
        ask()


@pytest.mark.parametrize("elem_type", ["tensor(string)", "tensor(bfloat16)", "sequence(tensor(float))"])
def test_an_onnx_type_that_is_not_served_is_refused(elem_type):
    with pytest.raises(ConfigError, match="cannot be served"):
        word_for_onnx(elem_type)


@pytest.mark.parametrize("dtype", ["complex64", "U3", "O", "M8[s]"])
def test_a_numpy_type_that_is_not_served_is_refused(dtype):
    assert not is_served(np.dtype(dtype))
    with pytest.raises(ConfigError, match="cannot be served"):
        word_for(np.dtype(dtype))
