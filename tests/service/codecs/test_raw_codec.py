import numpy as np
import pytest

from foldserve.service.artifact.datatypes import DATATYPES, numpy_dtype
from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.codecs.raw_codec import TensorHeaders, decode, encode, parse_shape, tensor_headers
from foldserve.service.errors import BadTensor, UnsupportedMediaType
from tests.service.support import DOUBLE, PAIR, SEQUENCE


def one(datatype="FP32", *row):
    return Signature((TensorSpec("x", datatype, (-1, *row)),), (TensorSpec("y", "FP32", (-1,)),))


@pytest.mark.parametrize("datatype", DATATYPES)
@pytest.mark.parametrize("rows", [1, 3])
def test_rows_of_every_datatype_are_read(datatype, rows):
    sent = np.arange(rows * 4).reshape(rows, 2, 2).astype(numpy_dtype(datatype))
    got = decode(sent.tobytes(), one(datatype, 2, 2))["x"]
    assert got.dtype == sent.dtype
    np.testing.assert_array_equal(got, sent)


def test_the_bytes_are_little_endian():
    assert decode(b"\x01\x00\x00\x00\x00\x00\x00\x00", one("INT64"))["x"].tolist() == [1]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_the_array_is_a_view_of_any_buffer(kind):
    buffer = kind(np.arange(6, dtype="f4").tobytes())
    assert np.shares_memory(decode(buffer, DOUBLE)["x"], np.frombuffer(buffer, "u1"))


def test_a_view_at_an_odd_address_is_copied_to_an_even_one():
    padded = b"?" + np.arange(3, dtype="f4").tobytes()
    array = decode(memoryview(padded)[1:], DOUBLE)["x"]
    assert array.flags.aligned
    assert array.tolist() == [[0.0, 1.0, 2.0]]


@pytest.mark.parametrize(
    ("size", "says"),
    [
        (0, "the body is empty; expected at least one row of 12 bytes"),
        (1, "0 rows of 12 and 1 bytes left over"),
        (13, "1 rows of 12 and 1 bytes left over"),
        (23, "1 rows of 12 and 11 bytes left over; expected a multiple of 12"),
    ],
)
def test_a_size_that_is_no_whole_number_of_rows_is_refused_with_the_rest(size, says):
    with pytest.raises(BadTensor, match=says):
        decode(bytes(size), DOUBLE)


def test_numbers_that_are_not_finite_pass():
    sent = np.array([[np.nan, np.inf, -np.inf]], "f4")
    np.testing.assert_array_equal(decode(sent.tobytes(), DOUBLE)["x"], sent)


def test_a_free_dim_is_settled_by_the_header():
    body = np.arange(6, dtype="i8").tobytes()
    assert decode(body, SEQUENCE, TensorHeaders(shape="2,3"))["tokens"].shape == (2, 3)
    assert decode(body, SEQUENCE, TensorHeaders(shape="[1, 6]"))["tokens"].shape == (1, 6)


def test_a_free_dim_without_the_header_is_refused_with_an_example():
    with pytest.raises(BadTensor, match="send the header X-Tensor-Shape, such as 'X-Tensor-Shape: 1,2'"):
        decode(bytes(16), SEQUENCE)


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        (TensorHeaders(shape="3,3"), r"takes 36"),
        (TensorHeaders(shape="2,4"), "dim 1 is 4; expected 3"),
        (TensorHeaders(shape="6"), "1 dims"),
        (TensorHeaders(shape="0,3"), "no rows"),
        (TensorHeaders(shape="999999999999999999,3"), "takes 11999999999999999988"),
        (TensorHeaders(shape="2x3"), "X-Tensor-Shape is '2x3'; expected sizes"),
        (TensorHeaders(shape="-1,3"), "expected sizes"),
        (TensorHeaders(shape=""), "expected sizes"),
        (TensorHeaders(shape="1e3,3"), "expected sizes"),
        (TensorHeaders(shape="9" * 5000), "expected sizes"),
        (TensorHeaders(shape="٢,٣"), "expected sizes"),
        (TensorHeaders(name="z"), "X-Tensor-Name is 'z'; expected 'x'"),
        (TensorHeaders(datatype="FP64"), "X-Tensor-Datatype is 'FP64' but input 'x' is FP32"),
    ],
)
def test_a_header_that_contradicts_is_refused(headers, says):
    with pytest.raises(BadTensor, match=says):
        decode(np.zeros((2, 3), "f4").tobytes(), DOUBLE, headers)


def test_headers_that_agree_pass():
    headers = TensorHeaders("x", "FP32", "2,3")
    assert decode(np.zeros((2, 3), "f4").tobytes(), DOUBLE, headers)["x"].shape == (2, 3)


def test_several_inputs_do_not_fit_into_a_raw_body():
    with pytest.raises(UnsupportedMediaType, match=r"2 inputs \(a, b\).*send application/json"):
        decode(bytes(8), PAIR)


@pytest.mark.parametrize("byte", [2, 128, 255])
def test_a_boolean_byte_is_zero_or_one(byte):
    with pytest.raises(BadTensor, match="byte above 1"):
        decode(bytes([0, 1, byte]), one("BOOL", 3))


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<i8", ">u2", "?"])
def test_an_answer_is_little_endian_and_row_major(dtype):
    array = np.array([[1, 0], [1, 1]], dtype)
    assert encode(array.T) == array.T.astype(array.dtype.newbyteorder("<")).tobytes(order="C")


@pytest.mark.parametrize(
    ("text", "shape"), [("2,3", (2, 3)), (" 2 , 3 ", (2, 3)), ("[2, 3]", (2, 3)), ("5", (5,))]
)
def test_a_shape_is_read_as_people_write_it(text, shape):
    assert parse_shape(text) == shape


def test_an_answer_says_what_it_holds():
    assert tensor_headers("y", "FP32", (2, 5)) == (
        ("X-Tensor-Name", "y"),
        ("X-Tensor-Datatype", "FP32"),
        ("X-Tensor-Shape", "2,5"),
    )


@pytest.mark.parametrize("name", ["a\r\nSet-Cookie: x", "größe", "\x00"])
def test_a_name_cannot_break_out_of_its_header(name):
    value = tensor_headers(name, "FP32", (1,))[0][1]
    assert value.isascii()
    assert value.isprintable()


@pytest.mark.parametrize(
    "sent", ["größe", "gr%C3%B6%C3%9Fe", "gr%c3%b6%c3%9fe", "größe".encode().decode("latin-1")]
)
def test_a_name_is_read_as_it_is_percent_encoded_and_in_utf_8(sent):
    signature = Signature((TensorSpec("größe", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))
    assert decode(bytes(4), signature, TensorHeaders(name=sent))["größe"].tolist() == [0.0]


@pytest.mark.parametrize("sent", ["grosse", "gr%C3%B6", "%", "\xff", ""])
def test_another_name_is_refused_however_it_is_written(sent):
    signature = Signature((TensorSpec("größe", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))
    with pytest.raises(BadTensor, match="X-Tensor-Name"):
        decode(bytes(4), signature, TensorHeaders(name=sent))
