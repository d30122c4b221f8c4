"""Whatever bytes come: an array that numpy or json would read too, or an error whose text is short; in little time.

Time is counted as CPU seconds of this thread, against bounds that a square misses by far and a straight line by none:
how quick the machine is does not matter.
"""

import io
import json
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from foldserve.service.artifact.datatypes import DATATYPES
from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.codecs import BodyType, TensorHeaders, answer_type, decode
from foldserve.service.codecs.protocol import Served
from foldserve.service.codecs.raw_codec import parse_shape
from foldserve.service.errors import BadTensor, ServiceError
from foldserve.service.inference.context import RequestContext, allowed_s, content_length
from foldserve.service.protocols.predict import PREDICT

LONGEST_TEXT = 2000
SPEC = TensorSpec("x", "FP32", (-1, 3))
many = settings(max_examples=300, deadline=None, database=None)


def signature(*specs):
    return Signature(specs or (SPEC,), (TensorSpec("y", "FP32", (-1,)),))


def check_short(error):
    """Fails unless it blames the client, in a text whose length the client does not choose."""
    assert 400 <= error.status < 500
    assert 0 < len(str(error)) <= LONGEST_TEXT


def refused_or_read(kind, body, of, headers=None):
    """The array, or None after an error with a short text. Anything else fails the test."""
    try:
        (array,) = decode(kind, body, of, headers).values()
    except ServiceError as error:
        return check_short(error)
    return array


specs = st.builds(
    TensorSpec,
    st.just("x"),
    st.sampled_from(DATATYPES),
    st.lists(st.sampled_from((-1, 1, 2, 3)), max_size=3).map(lambda dims: (-1, *dims)),
)


# -- JSON

leaves = st.one_of(
    st.integers(-(2**70), 2**70), st.floats(), st.booleans(), st.none(), st.text(max_size=60), st.just({})
)
documents = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4), max_leaves=30)


@many
@given(documents, specs)
def test_any_document_is_read_as_numpy_reads_it_or_refused(document, spec):
    body = json.dumps({"inputs": document}).encode()
    array = refused_or_read(BodyType.JSON, body, signature(spec))
    if array is not None:
        np.testing.assert_array_equal(array, np.array(json.loads(body)["inputs"], spec.dtype))


@many
@given(st.binary(max_size=200), st.sampled_from(BodyType), specs)
def test_any_bytes_are_read_or_refused(body, kind, spec):
    refused_or_read(kind, body, signature(spec))


GOOD = [[0.5] * 3] * 20_000


@pytest.mark.parametrize(
    "last",
    [[0.5, 0.5, True], [0.5, 0.5], [0.5, 0.5, "x"], [0.5, 0.5, 1e39], [0.5, 0.5, [1]], None, 7, {}],
    ids=str,
)
def test_the_place_of_a_fault_is_found_at_the_end_of_a_long_body_in_little_more_than_reading_takes(last):
    good, bad = (json.dumps({"inputs": [*GOOD, row]}).encode() for row in ([0.5] * 3, last))
    assert refused_or_read(BodyType.JSON, good, signature()) is not None

    def refuse():
        with pytest.raises(BadTensor, match=r"\[20000\]"):
            decode(BodyType.JSON, bad, signature())

    # A step of Python for each element took two hundred times as long as reading.
    assert cpu_s(refuse) < 20 * cpu_s(lambda: decode(BodyType.JSON, good, signature()))


# -- npy


def npy(header, data=b"", version=b"\x01\x00"):
    width = 2 if version[0] == 1 else 4
    return b"\x93NUMPY" + version + len(header).to_bytes(width, "little") + header + data


pieces = st.sampled_from(
    (
        *(
            "{",
            "}",
            "(",
            ")",
            ",",
            ":",
            " ",
            "'",
            '"',
            "'descr'",
            '"descr"',
            "'fortran_order'",
            "'shape'",
            "\n",
        ),
        *(
            "'<f4'",
            "'<b2'",
            "'f1'",
            "'<f2'",
            "'|b1'",
            "'>i8'",
            "'b4'",
            "'O'",
            "True",
            "False",
            "(2, 3)",
            "(2,3,)",
        ),
        *("(03, 1)", "(1L, 2L)", "999999999999999999", "0", "1", "{'descr': ", "', 'fortran_order': False, "),
    )
)
headers = st.one_of(
    st.builds(
        "{{'descr': {}, 'fortran_order': {}, 'shape': {}, }}".format,
        st.one_of(pieces, st.from_regex(r"'[<>|=]?[a-zA-Z?][0-9]{0,2}'", fullmatch=True)),
        st.sampled_from(("True", "False", "1")),
        st.one_of(pieces, st.lists(st.integers(0, 10**18), max_size=6).map(lambda dims: str(tuple(dims)))),
    ),
    st.lists(pieces, max_size=20).map("".join),
)
versions = st.sampled_from((b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x01\x01", b"\x00\x00", b"\x04\x00"))


@many
@given(headers, st.integers(0, 40), versions, specs)
@example("{'descr': '<b2', 'fortran_order': False, 'shape': (1, 3), }", 6, b"\x01\x00", SPEC)
@example("{'descr': 'f1', 'fortran_order': False, 'shape': (1, 3), }", 3, b"\x01\x00", SPEC)
@example("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3), }", 12, b"\x01\x00", SPEC)
@example("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 18 + ", 3), }", 12, b"\x01\x00", SPEC)
def test_any_npy_file_that_is_read_is_read_by_numpy_too_and_alike(header, size, version, spec):
    body = npy(
        header.encode("latin-1"), bytes(range(size)) if spec.datatype != "BOOL" else bytes(size), version
    )
    array = refused_or_read(BodyType.NPY, body, signature(spec))
    if array is not None:
        np.testing.assert_array_equal(array, np.load(io.BytesIO(body), allow_pickle=False))


@pytest.mark.parametrize("datatype", DATATYPES)
@pytest.mark.parametrize(
    "descr",
    [f"{mark}{kind}{size}" for mark in ("", "<", "=") for kind in "biufc" for size in (1, 2, 3, 4, 8, 16)],
)
def test_every_type_that_a_header_can_name_is_read_or_refused(descr, datatype):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': (1, 1), }}".encode()
    refused_or_read(BodyType.NPY, npy(header, bytes(8)), signature(TensorSpec("x", datatype, (-1, 1))))


@pytest.mark.parametrize("dims", [1, 2, 32, 33, 64, 300, 700])
@pytest.mark.parametrize("size", ["999999999999999999", "0", "1"])
def test_a_shape_of_giant_sizes_or_many_dims_is_refused_in_a_short_text(dims, size):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + f"{size}, ".encode() * dims + b"), }"
    if len(header) < 10_000:
        assert refused_or_read(BodyType.NPY, npy(header, bytes(40)), signature()) is None
    free = signature(TensorSpec("x", "FP32", (-1,) * min(dims, 32)))
    if size != "1":
        assert refused_or_read(BodyType.NPY, npy(header[:9_999], bytes(40)), free) is None


# -- headers, and how the time grows


def cpu_s(call):
    """The least CPU seconds of a few calls."""
    taken = []
    for _ in range(3):
        began_s = time.thread_time()
        call()
        taken.append(time.thread_time() - began_s)
    return min(taken)


def shape_of(text):
    try:
        parse_shape(text)
    except BadTensor as error:
        check_short(error)


def ask(**given):
    """Look at such headers as protocols/predict.py does."""
    call = RequestContext(
        "POST", "/predict", given.pop("query", ""), {k.replace("_", "-"): v for k, v in given.items()}
    )
    try:
        call.query_values(("version", "output"))
        if "x-timeout-ms" in call.headers:
            allowed_s(call.headers["x-timeout-ms"], 30.0)
        content_length(call.headers.get("content-length"))
        answer_type(call.headers.get("accept"), BodyType.JSON, ("y",))
        PREDICT[BodyType.RAW].parse(bytes(24), Served("m", "1", signature()), (*call.tensor_headers(), None))
    except ServiceError as error:
        check_short(error)


HOSTILE = {
    "spaces in a shape": lambda n: shape_of("1" + " " * n + "x"),
    "spaces after a comma of a shape": lambda n: shape_of("1," + " " * n + "x"),
    "commas in a shape": lambda n: shape_of("1" + " ,1" * (n // 3) + "x"),
    "sizes in a shape": lambda n: shape_of("[" + "1," * (n // 2)),
    "spaces in the header X-Tensor-Shape": lambda n: ask(x_tensor_shape="1" + " " * n + "x"),
    "a long X-Tensor-Name": lambda n: ask(x_tensor_name="é" * n),
    "digits in X-Timeout-Ms": lambda n: ask(x_timeout_ms="1" * n),
    "parts in Accept": lambda n: ask(accept="a/b;q=0.1," * (n // 10)),
    "weights in Accept": lambda n: ask(accept="a/b" + ";q=1" * (n // 4)),
    "parameters in the query": lambda n: ask(query="a=1&" * (n // 4)),
    **{
        f"{what} in an npy header": lambda n, a=a, b=b: refused_or_read(
            BodyType.NPY, npy((a + b * n)[:9_990].encode() + b"x"), signature()
        )
        for what, a, b in (
            ("spaces at the end", "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)", " "),
            ("spaces after the last comma", "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3),", " "),
            ("spaces in the shape", "{'descr': '<f4', 'fortran_order': False, 'shape': (2", " "),
            ("sizes", "{'descr': '<f4', 'fortran_order': False, 'shape': (", "1 , "),
            ("beginnings", "{", "'shape': ("),
            ("spaces at the start", "", " "),
        )
    },
}


@pytest.mark.parametrize("what", HOSTILE)
def test_text_of_a_client_takes_a_time_that_grows_with_its_length_at_most(what):
    """16 KB of spaces once took 3 s, and 64 KB a minute: the square."""
    for length in (1_000, 9_000, 64_000):
        # A quadratic pattern takes seconds for these; a linear one a millisecond, however slow the machine is.
        assert cpu_s(lambda n=length: HOSTILE[what](n)) < 0.1


@pytest.mark.parametrize(
    "shape", ["1" + " " * 900 + "x", "", "[", "1,,2", "1" * 19, ",".join(["1"] * 33), "9" * 5000]
)
def test_a_shape_that_is_none_is_refused(shape):
    with pytest.raises(BadTensor, match="expected sizes"):
        parse_shape(shape)


@pytest.mark.parametrize("shape", ["2,3", " [ 2 , 3 , ] ", "2,3,", "[2,3]", "2 ,3 "])
def test_a_shape_may_have_spaces_and_a_comma_at_its_end(shape):
    assert parse_shape(shape) == (2, 3)


def test_headers_that_agree_still_pass():
    assert decode(BodyType.RAW, bytes(24), signature(), TensorHeaders("x", "FP32", "2, 3"))["x"].shape == (
        2,
        3,
    )
