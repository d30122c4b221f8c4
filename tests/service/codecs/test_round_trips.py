"""What is written by one side is read by the other, for arrays that hypothesis thinks of."""

import io
import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from foldserve.service.artifact.datatypes import DATATYPES, numpy_dtype
from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.codecs import BodyType, TensorHeaders, decode, encode, lay_out
from foldserve.service.codecs.npy_codec import encode as encode_npy
from foldserve.service.errors import ServiceError

few = settings(max_examples=60, deadline=None, database=None)


@st.composite
def tensors(draw, finite=False):
    word = draw(st.sampled_from(DATATYPES))
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=5))
    elements = {"allow_nan": False, "allow_infinity": False} if finite and word.startswith("FP") else None
    array = draw(hnp.arrays(numpy_dtype(word), shape, elements=elements))
    free = draw(st.lists(st.booleans(), min_size=len(shape), max_size=len(shape)))
    dims = (-1, *(-1 if is_free else dim for dim, is_free in zip(shape[1:], free[1:], strict=True)))
    spec = TensorSpec("t", word, dims)
    return array, Signature((spec,), (spec,))


@st.composite
def requests(draw, finite=False, smallest=1):
    """A tensor of a model that counts no rows: of any dims, none too. smallest: of dims of any size."""
    word = draw(st.sampled_from(DATATYPES))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=smallest, max_side=5))
    elements = {"allow_nan": False, "allow_infinity": False} if finite and word.startswith("FP") else None
    array = draw(hnp.arrays(numpy_dtype(word), shape, elements=elements))
    dims = tuple(-1 if dim == 0 or draw(st.booleans()) else dim for dim in shape)
    spec = TensorSpec("t", word, dims, counts_rows=False)
    return np.asarray(array), Signature((spec,), (spec,))


any_tensors = st.one_of(tensors(), requests())


def same(got, sent):
    assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
    np.testing.assert_array_equal(got, sent)


@few
@given(st.one_of(tensors(finite=True), requests(finite=True)))
def test_json(tensor):
    array, signature = tensor
    written = json.loads(encode(BodyType.JSON, "m", "1", {"t": array}, signature).body)
    for form in (written["outputs"], written["outputs"]["t"]):
        same(decode(BodyType.JSON, json.dumps({"inputs": form}).encode(), signature)["t"], array)


@few
@given(any_tensors)
def test_raw(tensor):
    array, signature = tensor
    written = encode(BodyType.RAW, "m", "1", {"t": array}, signature)
    headers = dict(written.headers)
    promised = TensorHeaders(
        headers["X-Tensor-Name"], headers["X-Tensor-Datatype"], headers["X-Tensor-Shape"]
    )
    same(decode(BodyType.RAW, written.body, signature, promised)["t"], array)


@few
@given(any_tensors)
def test_npy(tensor):
    array, signature = tensor
    written = encode(BodyType.NPY, "m", "1", {"t": array}, signature)
    same(decode(BodyType.NPY, written.body, signature)["t"], array)
    same(np.load(io.BytesIO(written.body), allow_pickle=False), array)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=20,
)


@settings(max_examples=400, deadline=None, database=None)
@given(JSON_VALUES, st.sampled_from(DATATYPES), st.integers(0, 3), st.booleans())
def test_any_json_value_is_read_exactly_or_refused(value, word, rank, counts_rows):
    spec = TensorSpec("t", word, (-1,) * rank, counts_rows=counts_rows and rank > 0)
    signature = Signature((spec,), (spec,))
    try:
        array = decode(BodyType.JSON, json.dumps({"inputs": {"t": value}}).encode(), signature)["t"]
    except ServiceError:
        return
    # What was taken is what numpy makes of it when nothing has to be turned into another kind.
    got, sent = array.tolist(), np.array(value, dtype=object)
    assert sent.shape == array.shape
    kinds = {"b": {bool}, "f": {int, float}}.get(spec.dtype.kind, {int})
    assert {type(leaf) for leaf in sent.ravel().tolist()} <= kinds
    np.testing.assert_array_equal(np.array(got, spec.dtype), np.array(value, spec.dtype))


@settings(max_examples=300, deadline=None, database=None)
@given(st.data(), st.sampled_from(list(BodyType)))
def test_damaged_bodies_are_refused_or_read_but_never_break_anything(data, kind):
    spec = TensorSpec("t", "FP32", (-1, 3))
    signature = Signature((spec,), (spec,))
    array = np.arange(6, dtype="f4").reshape(2, 3)
    body = {
        BodyType.JSON: json.dumps({"inputs": array.tolist()}).encode(),
        BodyType.RAW: array.tobytes(),
        BodyType.NPY: encode_npy(array),
    }[kind]
    damaged = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, max(0, len(damaged) - 1)))
        action = data.draw(st.sampled_from("rdi"))
        if action == "r" and damaged:
            damaged[position] = data.draw(st.integers(0, 255))
        elif action == "d":
            del damaged[position : position + data.draw(st.integers(1, 9))]
        else:
            damaged[position:position] = data.draw(st.binary(max_size=9))
    try:
        got = decode(kind, bytes(damaged), signature)["t"]
    except ServiceError as error:
        status = error.status
    else:
        status = 400
        assert got.dtype == np.float32
        assert got.shape[1:] == (3,)
    assert 400 <= status < 500


@few
@given(requests(finite=True, smallest=0))
def test_an_answer_may_be_empty_in_every_type(tensor):
    array, signature = tensor
    value = json.loads(encode(BodyType.JSON, "m", "1", {"t": array}, signature).body)["outputs"]["t"]
    assert np.shape(value) == np.shape(array.tolist())  # after a 0, lists tell no more sizes
    same(np.array(value, array.dtype).reshape(array.shape), array)
    same(np.load(io.BytesIO(encode(BodyType.NPY, "m", "1", {"t": array}, signature).body)), array)
    raw = encode(BodyType.RAW, "m", "1", {"t": array}, signature)
    assert raw.body == array.tobytes()
    assert dict(raw.headers)["X-Tensor-Shape"] == (",".join(map(str, array.shape)) or "[]")


@few
@given(st.one_of(any_tensors, requests(smallest=0)))
def test_a_body_laid_out_is_the_body_encoded(tensor):
    array, signature = tensor
    for kind in (BodyType.RAW, BodyType.NPY):
        for given_array in (array, array.T.copy().T):
            written = encode(kind, "m", "1", {"t": given_array}, signature)
            laid = lay_out(kind, {"t": given_array}, signature)
            assert (laid.prefix + bytes(laid.numbers), laid.headers) == (written.body, written.headers)
