"""The quick way through requests takes only what the protocol takes, and makes the same of it."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.codecs.fast.codec import NO_SCHEDULE
from foldserve.service.codecs.protocol import Options, Served
from foldserve.service.errors import ServiceError
from foldserve.service.protocols.oip.fast import OipFastCodec
from foldserve.service.protocols.oip.infer import OIP_BINARY, OIP_JSON
from foldserve.service.protocols.oip.request import Reply

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 2)),))
VERSION = Served("m", "1", SIGNATURE)
ROW = [1.0, -0.5, 3e7]


def codec(signature: Signature = SIGNATURE) -> OipFastCodec:
    made = OipFastCodec.of("m", "1", signature)
    assert made is not None
    return made


def as_json(data: Any, rows: int = 1, **more: Any) -> bytes:
    tensor = {"name": "x", "shape": [rows, 3], "datatype": "FP32", "data": data}
    return json.dumps({"inputs": [tensor], **more}).encode()


def as_binary(array: np.ndarray, **more: Any) -> tuple[bytes, Options]:
    tensor = {
        "name": "x", "shape": list(array.shape), "datatype": "FP32", "parameters": {"binary_data_size": array.nbytes}
    }  # fmt: skip
    text = json.dumps({"inputs": [tensor], **more}).encode()
    return text + array.tobytes(), (str(len(text)),)


def teach(fast: OipFastCodec, body: bytes, options: Options = ()) -> None:
    """Have the protocol look twice, as it does for a client's first two requests."""
    for _ in range(2):
        parsed = OIP_JSON.parse(body, VERSION, options)
        SIGNATURE.check_inputs(parsed.inputs)
        schedule = None if parsed.schedule == NO_SCHEDULE else parsed.schedule
        fast.learn(body, options, parsed.inputs, parsed.reply, schedule)


def agree(fast: OipFastCodec, body: bytes, options: Options = ()) -> bool:
    """Whether it is taken; what is taken is what the protocol finds."""
    taken = fast.decode(body, options)
    if taken is None:
        return False
    rows, data, reply, schedule = taken
    parsed = OIP_JSON.parse(body, VERSION, options)
    assert rows == SIGNATURE.check_inputs(parsed.inputs)
    assert bytes(data) == parsed.inputs["x"].tobytes()
    assert reply == parsed.reply
    assert (schedule or NO_SCHEDULE) == parsed.schedule
    return True


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "flat"])
@pytest.mark.parametrize("rows", [1, 7, 400])
@pytest.mark.parametrize(
    "more", [{}, {"parameters": {"binary_data_output": True}}, {"outputs": [{"name": "y"}]}], ids=str
)
def test_ordinary_json_is_taken_from_the_third_time_on(nested, rows, more):
    fast = codec()
    values = np.random.default_rng(0).integers(-50, 50, (rows, 3)) / 4
    other = values[::-1] + 0.25
    teach(fast, as_json(values.tolist() if nested else values.reshape(-1).tolist(), rows, **more))
    assert agree(fast, as_json(other.tolist(), rows, **more))
    assert agree(fast, as_json(other.reshape(-1).tolist(), rows, **more))


@pytest.mark.parametrize("rows", [1, 400])
@pytest.mark.parametrize(
    "more",
    [{}, {"parameters": {"binary_data_output": True}}, {"parameters": {"priority": 2, "timeout": 5}}],
    ids=str,
)
def test_ordinary_bytes_are_taken_from_the_third_time_on(rows, more):
    fast = codec()
    array = np.random.default_rng(0).standard_normal((rows, 3)).astype("f4")
    teach(fast, *as_binary(array, **more))
    assert agree(fast, *as_binary(array * 2, **more))


NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.booleans(), st.none(), st.text(max_size=3)
)


@given(
    data=st.one_of(
        st.lists(NUMBERS, max_size=6), st.lists(st.lists(NUMBERS, max_size=3), max_size=3), NUMBERS
    )
)
def test_whatever_stands_in_the_place_of_the_numbers_is_read_as_the_protocol_reads_it(data):
    fast = codec()
    teach(fast, as_json(ROW))
    body = as_json(data)
    try:
        OIP_JSON.parse(body, VERSION, ())
    except ServiceError:
        assert fast.decode(body, ()) is None
    else:
        agree(fast, body)


@given(
    at=st.integers(0, 200),
    with_=st.sampled_from([b"", b"[", b"]", b"}", b'"', b",", b"1", b" ", b"l", b"\x00", b"\\"]),
)
def test_a_changed_byte_is_read_as_the_protocol_reads_it(at, with_):
    fast = codec()
    body = as_json([ROW], outputs=[{"name": "y"}])
    teach(fast, body)
    changed = body[: at % len(body)] + with_ + body[at % len(body) + 1 :]
    try:
        OIP_JSON.parse(changed, VERSION, ())
    except ServiceError:
        assert fast.decode(changed, ()) is None
    else:
        agree(fast, changed)


def test_json_too_long_to_be_kept_is_neither_copied_nor_looked_up():
    fast = codec()
    array = np.ones((1, 3), np.float32)
    for padding, known in ((1900, True), (15 * 2**20, False)):
        body, options = as_binary(array, parameters={"note": "x" * padding})
        teach(fast, body, options)
        assert agree(fast, body, options) == known
        assert fast.envelope_bytes(options) == (int(str(options[0])) if known else 0)


def test_bytes_of_another_length_are_left_to_the_protocol():
    fast = codec()
    body, options = as_binary(np.float32([ROW]))
    teach(fast, body, options)
    for other in (body[:-1], body + b"1", body[: int(options[0] or 0)]):
        assert fast.decode(other, options) is None
    assert fast.decode(body, ("0",)) is None
    assert fast.decode(body, ()) is None


@pytest.mark.parametrize(
    "body",
    [
        as_json(ROW, id="a"),  # another one each time, and not where ids are looked for
        b'{"id": "a", "id": "a", ' + as_json(ROW)[1:],  # the last counts
        as_json(ROW, parameters={"data": 1}),  # which of the two?
        as_json(ROW).replace(b'"data"', b'"d\\u0061ta"'),
        as_json(ROW, id='x"data":[1,2,3]'),
    ],
)
def test_what_might_mean_something_else_next_time_is_not_kept(body):
    fast = codec()
    teach(fast, body)
    assert fast.decode(body, ()) is None


@pytest.mark.parametrize(
    "reply",
    [
        Reply(),
        Reply(id="a"),
        Reply(id='"\u20ac\\', binary=True),
        Reply(binary=True),
        Reply(choices={"y": (True, 0)}),
        Reply(binary=True, choices={"y": (False, 0)}),
    ],
)
@given(values=st.lists(st.tuples(st.floats(width=32), st.floats(width=32)), min_size=1, max_size=4))
@example(values=[(1.0, 2.0)])
def test_answers_are_the_protocols(reply, values):
    output = np.float32(values)
    made = codec().encode(output, tuple(reply))
    try:
        expected = OIP_BINARY.render(Served("m", "1", SIGNATURE), {"y": output}, tuple(reply))
    except ServiceError:
        assert made is None
    else:
        assert made == tuple(expected)


def test_classes_are_left_to_the_protocol():
    assert codec().encode(np.float32([[1, 2]]), tuple(Reply(choices={"y": (False, 2)}))) is None


def with_id(body: bytes, identity: bytes) -> bytes:
    """As clients write it: first of all."""
    return b'{"id": %b, %b' % (identity, body.removeprefix(b"{"))


def with_id_and_bytes(array: np.ndarray, identity: bytes) -> tuple[bytes, Options]:
    body, options = as_binary(array)
    changed = with_id(body, identity)
    return changed, (str(int(options[0] or 0) + len(changed) - len(body)),)


@pytest.mark.parametrize("first", [b'"a-1"', b'"2"'])
@pytest.mark.parametrize("then", [b'"another one"', b'"7"'])
def test_requests_that_differ_in_their_ids_are_taken_with_their_own(first, then):
    fast = codec()
    teach(fast, with_id(as_json(ROW), first))
    assert agree(fast, with_id(as_json(ROW), then))
    assert agree(fast, as_json(ROW))
    array = np.float32([ROW])
    teach(fast, *with_id_and_bytes(array, first))
    assert agree(fast, *with_id_and_bytes(array * 2, then))
    assert agree(fast, *as_binary(array))


IDS = st.one_of(
    st.builds(lambda text: json.dumps(text).encode(), st.text(max_size=4)),
    st.text(max_size=4).map(lambda text: json.dumps(text, ensure_ascii=False).encode()),
    st.sampled_from(
        [b"null", b"7", b'"a', b'"\\u0061"', b'"a\\"b"', b'"a","id":"b"', b'"a" , "data" : [1]', b'""']
    ),
)


@given(learned=IDS, asked=IDS)
@example(learned=b'"a","id":"a"', asked=b'"b","id":"a"')
@example(learned=b'"a","\\u0069d":"a"', asked=b'"b","\\u0069d":"a"')
@example(learned=b'"a"', asked=b'"b"\x0b')
def test_whatever_stands_in_the_place_of_the_id_is_read_as_the_protocol_reads_it(learned, asked):
    fast = codec()
    bodies = [(with_id(as_json(ROW), one), ()) for one in (learned, asked)]
    bodies += [with_id_and_bytes(np.float32([ROW]), one) for one in (learned, asked)]
    for body, options in bodies[::2]:
        try:
            teach(fast, body, options)
        except ServiceError:
            continue
    for body, options in bodies[1::2]:
        try:
            OIP_JSON.parse(body, VERSION, options)
        except ServiceError:
            assert fast.decode(body, options) is None
        else:
            agree(fast, body, options)


@pytest.mark.parametrize(
    "signature",
    [
        Signature((*SIGNATURE.inputs, TensorSpec("z", "FP32", (-1, 3))), SIGNATURE.outputs),
        Signature(SIGNATURE.inputs, (*SIGNATURE.outputs, TensorSpec("z", "FP32", (-1, 3)))),
        Signature((TensorSpec("x", "FP32", (-1, -1)),), SIGNATURE.outputs),
        Signature(SIGNATURE.inputs, (TensorSpec("y", "FP32", (-1, -1)),)),
        Signature((TensorSpec("x", "BOOL", (-1, 3)),), SIGNATURE.outputs),
    ],
)
def test_other_models_have_no_quick_way(signature):
    assert OipFastCodec.of("m", "1", signature) is None


def test_integers_have_one_for_their_bytes_alone():
    signature = Signature((TensorSpec("x", "INT64", (-1, 3)),), SIGNATURE.outputs)
    fast = codec(signature)
    array = np.array([[1, 2, 3]], "i8")
    tensor = {"name": "x", "shape": [1, 3], "datatype": "INT64"}
    text = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": 24}}]}).encode()
    plain = json.dumps({"inputs": [{**tensor, "data": [1, 2, 3]}]}).encode()
    for body, options in ((text + array.tobytes(), (str(len(text)),)), (plain, ())):
        for _ in range(2):
            parsed = OIP_JSON.parse(body, Served("m", "1", signature), options)
            fast.learn(body, options, parsed.inputs, parsed.reply, None)
    taken = fast.decode(text + array.tobytes(), (str(len(text)),))
    assert taken == (1, array.tobytes(), tuple(Reply()), None)
    assert fast.decode(plain, ()) is None
