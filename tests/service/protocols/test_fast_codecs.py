"""What a protocol's quick way takes comes out of the protocol equal, for every protocol that has one."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.codecs import BodyType
from foldserve.service.codecs.protocol import InferenceProtocol, Served
from foldserve.service.errors import ServiceError
from foldserve.service.protocols import PROTOCOLS
from foldserve.service.protocols.kserve_v1 import KSERVE_V1, KSERVE_V1_PICTURES
from foldserve.service.protocols.oip.infer import OIP_BINARY, OIP_JSON
from foldserve.service.protocols.oip.request import Reply
from foldserve.service.protocols.predict import PREDICT

REPLIES: dict[str, tuple[Any, ...]] = {
    **{protocol.key: (None,) for protocol in PREDICT.values()},
    KSERVE_V1.key: ("instances", "inputs"),
    KSERVE_V1_PICTURES.key: ("instances",),
    OIP_JSON.key: (list(Reply(None, False, {})),),
    OIP_BINARY.key: (list(Reply(None, True, {})), list(Reply(None, False, {"y": [True, 0]}))),
}
"""What a body may have said to its answer."""
DATATYPES = ("FP16", "FP32", "FP64", "INT64", "UINT8")
VALUES = st.lists(
    st.lists(
        st.one_of(st.floats(-1e4, 1e4, width=16), st.sampled_from([np.nan, np.inf, 0.0])),
        min_size=2,
        max_size=2,
    ),
    min_size=1,
    max_size=4,
)


def served(datatype: str) -> Served:
    return Served(
        "m", "1", Signature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", datatype, (-1, 2)),))
    )


def test_every_protocol_with_a_quick_way_is_tried_here() -> None:
    assert {one.key for one in PROTOCOLS if one.fast_codec(served("FP32")) is not None} == set(REPLIES)


@pytest.mark.parametrize("datatype", DATATYPES)
@pytest.mark.parametrize(
    "protocol", [one for one in PROTOCOLS if one.key in REPLIES], ids=lambda one: one.key
)
@given(values=VALUES)
def test_a_quick_answer_is_the_protocols_own(
    protocol: InferenceProtocol, datatype: str, values: list[list[float]]
) -> None:
    of = served(datatype)
    fast = protocol.fast_codec(of)
    assert fast is not None
    dtype = of.signature.outputs[0].dtype
    output = (
        np.nan_to_num(np.abs(values), posinf=0).astype(dtype)
        if dtype.kind != "f"
        else np.array(values, dtype)
    )
    for reply in REPLIES[protocol.key]:
        for _ in range(2):  # the second time it is prepared
            answer = fast.encode(output, reply)
            try:
                own = protocol.render(of, {"y": output}, reply)
            except ServiceError:
                assert answer is None
            else:
                assert answer is None or answer == tuple(own)


@pytest.mark.parametrize("kind", list(BodyType))
def test_an_ordinary_answer_takes_the_quick_way(kind: BodyType) -> None:
    of = served("FP32")
    fast = PREDICT[kind].fast_codec(of)
    assert fast is not None
    assert fast.encode(np.ones((3, 2), np.float32), None) is not None


ROWS = st.lists(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3),
    min_size=1,
    max_size=4,
)
BODIES = st.one_of(
    st.builds(
        lambda key, rows: json.dumps({key: rows}).encode(),
        st.sampled_from(["instances", "inputs", "x"]),
        ROWS,
    ),
    st.builds(lambda rows: json.dumps({"instances": [{"x": row} for row in rows]}).encode(), ROWS),
    st.builds(lambda rows: json.dumps({"instances": rows, "inputs": rows}).encode(), ROWS),
    st.builds(lambda rows: json.dumps(rows).encode(), ROWS),
)


@given(body=BODIES)
def test_rows_of_kserve_v1_that_are_taken_are_what_the_protocol_reads(body: bytes) -> None:
    of = served("FP32")
    fast = KSERVE_V1.fast_codec(of)
    assert fast is not None
    taken = fast.decode(body, ())
    assert (taken is not None) == (body.startswith(b'{"instances": [[') and b"inputs" not in body)
    if taken is not None:
        rows, data, reply, schedule = taken
        assert schedule is None
        parsed = KSERVE_V1.parse(body, of, ())
        assert (rows, bytes(data), reply) == (
            of.signature.check_inputs(parsed.inputs),
            parsed.inputs["x"].tobytes(),
            parsed.reply,
        )
