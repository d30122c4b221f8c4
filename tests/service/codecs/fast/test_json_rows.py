"""The quick way through JSON takes only what json_codec takes, and makes the same of it."""

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.codecs import json_codec
from foldserve.service.codecs.fast.json_rows import JsonRowsCodec
from foldserve.service.errors import ServiceError


def signature(datatype: str, *dims: int) -> Signature:
    return Signature((TensorSpec("x", datatype, (-1, *dims)),), (TensorSpec("y", "FP32", (-1, 2)),))


def prepared(of: Signature) -> JsonRowsCodec | None:
    return JsonRowsCodec.of(of, "inputs", (b"[", b"]"))


def quick(of: Signature) -> JsonRowsCodec:
    made = prepared(of)
    assert made is not None
    return made


FLOATS = ["FP16", "FP32", "FP64"]
LEAVES = st.one_of(
    st.integers(-(2**70), 2**70),
    st.integers(-10, 10),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-1000, 1000, width=32),
    st.sampled_from([65519, 65520, 3.4028235e38, 3.4028236e38, 1e308, -0.0, 5e-324]),
)
ODD = st.one_of(
    st.none(), st.booleans(), st.text(max_size=3), st.dictionaries(st.text(max_size=2), LEAVES, max_size=1)
)


def nested(leaf: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    rows = st.lists(st.lists(leaf, min_size=3, max_size=3), min_size=1, max_size=4)
    return st.one_of(rows, st.lists(st.lists(leaf, max_size=4), max_size=3), st.lists(leaf, max_size=3), leaf)


BODIES = st.one_of(
    st.builds(lambda value: json.dumps({"inputs": value}).encode(), nested(LEAVES)),
    st.builds(lambda value: json.dumps({"inputs": value}).encode(), nested(st.one_of(LEAVES, ODD))),
    st.builds(lambda key, value: json.dumps({key: value}).encode(), st.text(max_size=8), nested(LEAVES)),
    st.binary(max_size=30),
)


@pytest.mark.parametrize("datatype", FLOATS)
@given(text=BODIES)
@example(text=b'{"inputs":[[1e400,0,0]]}')
@example(text=b'{"inputs":[]}')
@example(text=b'{"inputs":[[]]}')
@example(text=b'{"inputs":{}}')
@example(text=b'["inputs"]')
@example(text=b'{"inp\\u0075ts":[[1,2,3]]}')
@example(text=b' {"inputs" : [ [1, 2, 3] ] } ')
@example(text=b'{"inputs":[[1,2,[3]]]}')
@example(text=b'{"inputs":[[1,2,3],4]}')
def test_whatever_is_taken_comes_out_of_json_codec_equal(datatype: str, text: bytes) -> None:
    of = signature(datatype, 3)
    taken = quick(of).decode(text, ())
    if taken is None:
        return
    rows, data, *_ = taken
    expected = json_codec.decode(text, of)["x"]
    assert rows == of.check_inputs({"x": expected})
    assert bytes(data) == expected.tobytes()


@pytest.mark.parametrize(
    ("dims", "count"), [((3,), 1), ((3,), 7), ((3,), 400), ((2, 2), 1), ((2, 2), 300), ((), 5)]
)
@pytest.mark.parametrize("datatype", FLOATS)
def test_ordinary_bodies_are_taken(datatype: str, dims: tuple[int, ...], count: int) -> None:
    values = np.random.default_rng(0).integers(-50, 50, (count, *dims)) / 4
    taken = quick(signature(datatype, *dims)).decode(json.dumps({"inputs": values.tolist()}).encode(), ())
    assert taken is not None
    assert taken[0] == count
    of = signature(datatype, *dims).inputs[0].dtype
    assert bytes(taken[1]) == values.astype(of).tobytes()


@pytest.mark.parametrize("count", [1, 400], ids=["few numbers", "many numbers"])
@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        *(("FP16", 65520), ("FP32", 3.5e38), ("FP64", 1e400)),
        *(("FP32", value) for value in ("NaN", "1", True, False, None)),
    ],
)
def test_what_the_datatype_cannot_hold_is_left_to_json_codec(
    count: int, datatype: str, value: object
) -> None:
    of = signature(datatype, 3)
    text = json.dumps({"inputs": [[0, 0, 0]] * (count - 1) + [[0, value, 0]]}).encode()
    assert quick(of).decode(text, ()) is None
    with pytest.raises(ServiceError):
        json_codec.decode(text, of)


@pytest.mark.parametrize(
    "of",
    [
        signature("INT64", 3),
        signature("FP32", -1),
        Signature(
            (*signature("FP32", 3).inputs, TensorSpec("b", "FP32", (-1, 1))), signature("FP32", 3).outputs
        ),
        Signature(signature("FP32", 3).inputs, (TensorSpec("y", "FP32", (-1, -1)),)),
    ],
    ids=["integers", "any length", "two inputs", "any length out"],
)
def test_other_models_have_no_quick_way(of: Signature) -> None:
    assert prepared(of) is None
