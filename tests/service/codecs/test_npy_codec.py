import io
import pickle

import numpy as np
import pytest

from foldserve.service.artifact.datatypes import DATATYPES, numpy_dtype
from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.codecs.npy_codec import decode, encode
from foldserve.service.codecs.raw_codec import TensorHeaders
from foldserve.service.errors import BadTensor, UnsupportedMediaType
from tests.service.support import DOUBLE, PAIR, SEQUENCE


def one(datatype="FP32", *row):
    return Signature((TensorSpec("x", datatype, (-1, *row)),), (TensorSpec("y", "FP32", (-1,)),))


def saved(array, version=None, **options):
    file = io.BytesIO()
    if version is None:
        np.save(file, array, **options)
    else:
        np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


def made(header: str, data: bytes = b"", version=b"\x01\x00"):
    """A file with any header text."""
    text = header.encode("latin-1") + b"\n"
    length = len(text).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + length + text + data


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3), }"


@pytest.mark.parametrize("datatype", DATATYPES)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("layout", "CF")
def test_what_numpy_saves_is_read(datatype, order, layout):
    sent = np.asarray(np.arange(12).reshape(2, 2, 3), numpy_dtype(datatype).newbyteorder(order), order=layout)
    got = decode(saved(sent), one(datatype, 2, 3))["x"]
    assert got.dtype == numpy_dtype(datatype)
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, sent)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_format_is_read(version):
    sent = np.arange(3, dtype="f4").reshape(1, 3)
    np.testing.assert_array_equal(decode(saved(sent, version), DOUBLE)["x"], sent)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_the_array_is_a_view_of_any_buffer(kind):
    buffer = kind(saved(np.arange(3, dtype="f4").reshape(1, 3)))
    assert np.shares_memory(decode(buffer, DOUBLE)["x"], np.frombuffer(buffer, "u1"))


@pytest.mark.parametrize(
    "header",
    [
        GOOD,
        '{"descr": "<f4", "fortran_order": False, "shape": (1, 3)}',
        "{'shape':(1,3),'fortran_order':False,'descr':'<f4'}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1L, 3L), }  ",
        " { 'descr' : '<f4' , 'fortran_order' : False , 'shape' : ( 1 , 3 , ) , } ",
    ],
)
def test_headers_that_other_programs_write_are_read(header):
    data = np.array([1, 2, 3], "<f4").tobytes()
    assert decode(made(header, data), DOUBLE)["x"].tolist() == [[1.0, 2.0, 3.0]]


def test_an_odd_header_does_not_make_an_unaligned_array():
    data = np.array([1, 2, 3], "<f4").tobytes()
    for padding in range(8):
        assert decode(made(GOOD + " " * padding, data), DOUBLE)["x"].flags.aligned


@pytest.mark.parametrize(
    "header",
    [
        "",
        "{}",
        "None",
        "{'descr': '<f4', 'fortran_order': False}",
        "{'descr': '<f4', 'fortran_order': False, 'fortran_order': True}",
        "{'descr': '<f4', 'descr': '<f4', 'descr': '<f4'}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3), 'x': 1}",
        "{'descr': '<f4', 'fortran_order': 0, 'shape': (1, 3)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1.0, 3)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': [1, 3]}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1, ,3)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 400 + ", 3)}",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1, 3)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3)} + __import__('os').getpid()",
        "(" * 4000,
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1" * 4000,
    ],
)
def test_any_other_header_is_refused(header):
    with pytest.raises(BadTensor, match=r"the npy header .* is not that of an array of numbers"):
        decode(made(header, bytes(12)), DOUBLE)


@pytest.mark.parametrize(
    "descr", ["|O", "O", "<U4", "|S4", "<M8[s]", "<c8", "|V4", "<f3", "<f16", "<b1x", "float32", "f4,f4"]
)
def test_a_type_that_is_no_served_number_is_refused(descr):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': (1, 3), }}"
    with pytest.raises(BadTensor, match=r"npy file holds|not that of an array of numbers"):
        decode(made(header, bytes(48)), DOUBLE)


class _Bomb:
    def __reduce__(self):
        return (exec, ("raise AssertionError('a pickle was read')",))


def test_pickled_objects_are_never_read():
    body = saved(np.array([_Bomb()], dtype=object), allow_pickle=True)
    assert b"exec" in body
    with pytest.raises(BadTensor, match=r"'\|O'"):
        decode(body, one())


def test_a_bare_pickle_is_refused():
    with pytest.raises(BadTensor, match=r"not a .npy file"):
        decode(pickle.dumps([1.0]), one())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x93",
        b"\x93NUMPY",
        b"\x93NUMPY\x01",
        b"\x93NUMPY\x01\x00\x10",
        b"PK\x03\x04 a zip file",
        b'{"inputs": [[1,2,3]]}',
    ],
)
def test_what_is_no_npy_file_is_refused(body):
    with pytest.raises(BadTensor, match=r"not a .npy file"):
        decode(body, DOUBLE)


def test_an_unknown_version_is_refused():
    with pytest.raises(BadTensor, match=r"not a .npy file"):
        decode(made(GOOD, bytes(12), b"\x04\x00"), DOUBLE)


@pytest.mark.parametrize("cut", [11, 40, 127])
def test_a_file_cut_within_its_header_is_refused(cut):
    with pytest.raises(BadTensor, match=r"header claims 118 bytes"):
        decode(saved(np.zeros((1, 3), "f4"))[:cut], DOUBLE)


def test_a_header_length_that_lies_allocates_nothing():
    with pytest.raises(BadTensor, match="claims 4294967295 bytes"):
        decode(b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(100), DOUBLE)


@pytest.mark.parametrize(
    ("shape", "size"),
    [("(1, 3)", 11), ("(1, 3)", 13), ("(2, 3)", 12), ("(999999999999999999, 3)", 12), ("(0, 3)", 12)],
)
def test_a_size_other_than_the_header_says_is_refused(shape, size):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    with pytest.raises(BadTensor, match=f"but {size} bytes follow"):
        decode(made(header, bytes(size)), DOUBLE)


@pytest.mark.parametrize(
    "shape", ["(0, 3)", "(0, 999999999999999999)", "(999999999999999999, 999999999999999999, 0)"]
)
def test_an_empty_array_is_refused(shape):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    with pytest.raises(BadTensor, match=r"no rows|dim 1 is|3 dims"):
        decode(made(header), DOUBLE)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((1, 3)), "has datatype float64; expected FP32"),
        (np.zeros((1, 3), "i4"), "has datatype int32"),
        (np.zeros((1, 3), "?"), "has datatype bool"),
        (np.zeros(3, "f4"), "for a single row, wrap it once more"),
        (np.zeros((1, 4), "f4"), "dim 1 is 4"),
        (np.float32(1), "0 dims"),
    ],
)
def test_an_array_that_does_not_fit_is_refused(array, says):
    with pytest.raises(BadTensor, match=says):
        decode(saved(array), DOUBLE)


def test_a_free_dim_needs_no_header():
    assert decode(saved(np.zeros((2, 5), "i8")), SEQUENCE)["tokens"].shape == (2, 5)


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        (TensorHeaders(shape="3,1"), "the npy body has"),
        (TensorHeaders(name="z"), "X-Tensor-Name"),
        (TensorHeaders(datatype="INT8"), "X-Tensor-Datatype"),
    ],
)
def test_a_header_that_contradicts_is_refused(headers, says):
    with pytest.raises(BadTensor, match=says):
        decode(saved(np.zeros((1, 3), "f4")), DOUBLE, headers)


def test_headers_that_agree_pass():
    assert decode(saved(np.zeros((1, 3), "f4")), DOUBLE, TensorHeaders("x", "FP32", "1,3"))["x"].shape == (
        1,
        3,
    )


def test_several_inputs_do_not_fit_into_a_npy_body():
    with pytest.raises(UnsupportedMediaType, match="send application/json"):
        decode(saved(np.zeros((1, 2), "f4")), PAIR)


def test_a_boolean_byte_is_zero_or_one():
    header = "{'descr': '|b1', 'fortran_order': False, 'shape': (1, 3), }"
    with pytest.raises(BadTensor, match="byte above 1"):
        decode(made(header, b"\x00\x01\x02"), one("BOOL", 3))


@pytest.mark.parametrize("datatype", DATATYPES)
@pytest.mark.parametrize("shape", [(1,), (3,), (2, 3), (1, 2, 3, 4)])
def test_numpy_reads_what_is_written(datatype, shape):
    array = np.arange(np.prod(shape)).reshape(shape).astype(numpy_dtype(datatype))
    for given in (array, array.astype(array.dtype.newbyteorder(">")), np.asfortranarray(array)):
        got = np.load(io.BytesIO(encode(given)), allow_pickle=False)
        assert got.dtype == array.dtype
        np.testing.assert_array_equal(got, array)


def test_the_numbers_begin_at_a_multiple_of_64():
    for rank in range(1, 12):
        body = encode(np.zeros((1,) * rank, "f4"))
        assert (len(body) - 4) % 64 == 0
