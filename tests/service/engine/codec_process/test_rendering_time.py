"""Which answers an event loop writes itself, by what each protocol says of them."""

from typing import Any

import numpy as np
import pytest

from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.codecs import BodyType
from foldserve.service.codecs.protocol import Served
from foldserve.service.engine.codec_process.rendering_time import AT_ONCE_NS, SMALL_BYTES
from foldserve.service.protocols import PROTOCOLS
from foldserve.service.protocols.kserve_v1 import KSERVE_V1
from foldserve.service.protocols.oip.grpc_infer import OIP_GRPC
from foldserve.service.protocols.oip.infer import OIP_BINARY, OIP_JSON
from foldserve.service.protocols.oip.request import Reply
from foldserve.service.protocols.predict import PREDICT
from foldserve.service.protocols.torchserve import TORCHSERVE

X = (TensorSpec("x", "FP32", (-1, 2)),)
JSON = PREDICT[BodyType.JSON]
PLACE = ("region", 0, 2**30, 1)


def at_once(protocol: Any, outputs: dict[str, np.ndarray], reply: Any, labels: tuple[str, ...] = ()) -> bool:
    specs = tuple(
        TensorSpec(name, "FP32" if array.dtype == np.float32 else "UINT8", (-1, *array.shape[1:]))
        for name, array in outputs.items()
    )
    version = Served("m", "1", Signature(X, specs), labels)
    return bool(protocol.render_ns(version, outputs, reply) <= AT_ONCE_NS)


def floats(*shape: int) -> dict[str, np.ndarray]:
    return {"y": np.zeros(shape, "f4")}


@pytest.mark.parametrize(
    ("protocol", "outputs", "reply", "expected"),
    [
        (JSON, floats(1, 65_536), None, True),
        (JSON, floats(1, 200_000), None, False),
        (JSON, floats(65_536, 1), None, False),
        (JSON, floats(1, 65_536), 5, False),
        (JSON, floats(1, 1000), 1000, True),
        (PREDICT[BodyType.RAW], floats(1, 400_000), None, True),
        (PREDICT[BodyType.RAW], floats(1, 600_000), None, False),
        (OIP_JSON, floats(1, 65_536), Reply(), True),
        (OIP_JSON, floats(1, 65_536), Reply(choices={"y": (False, 1)}), False),
        (OIP_JSON, floats(1, 2048), Reply(choices={"y": (False, 2048)}), False),
        (OIP_JSON, floats(1, 1000), Reply(choices={"y": (True, 1000)}), True),
        (OIP_BINARY, floats(1, 400_000), Reply(binary=True), True),
        (OIP_BINARY, floats(1, 600_000), Reply(binary=True), False),
        (OIP_JSON, floats(1, 400_000), Reply(choices={"y": (False, 0)}, places={"y": PLACE}), True),
        (OIP_JSON, floats(1, 600_000), Reply(choices={"y": (False, 0)}, places={"y": PLACE}), False),
        (OIP_GRPC, floats(1, 65_536), Reply(binary=True, choices={"y": (True, 65_536)}), False),
        (OIP_GRPC, floats(1, 65_536), Reply(binary=True), True),
        (KSERVE_V1, floats(1, 65_536), "instances", True),
        (KSERVE_V1, {**floats(2000, 1), "z": np.zeros((2000, 1), "f4")}, "instances", False),
        (KSERVE_V1, {**floats(2000, 1), "z": np.zeros((2000, 1), "f4")}, "inputs", True),
        (TORCHSERVE, floats(1, 65_536), "rows", True),
        (TORCHSERVE, {**floats(2000, 1), "z": np.zeros((2000, 1), "f4")}, "rows", False),
    ],
)
def test_what_takes_long_is_not_written_on_the_event_loop(
    protocol: Any, outputs: dict[str, np.ndarray], reply: Any, expected: bool
) -> None:
    assert at_once(protocol, outputs, reply) is expected


def test_labels_count() -> None:
    assert at_once(TORCHSERVE, floats(1, 1000), "row", tuple(map(str, range(1000))))
    assert not at_once(TORCHSERVE, floats(1000, 10), "rows", tuple("abcdefghij"))


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.key)
def test_every_protocol_says_what_it_writes_at_once_and_little_is(protocol: Any) -> None:
    assert protocol.at_once_bytes >= SMALL_BYTES
