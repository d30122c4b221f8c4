"""KServe v1: rows or columns of JSON; pictures as base64 among them."""

import base64
import json
from random import Random
from typing import Any, Final

import numpy as np

from tests.torture.protocols.damage import damaged_values
from tests.torture.protocols.pictures import file_of, shows
from tests.torture.protocols.predict import JSON_TOKENS
from tests.torture.protocols.seam import (
    JSON,
    Asked,
    Carried,
    Protocol,
    Request,
    finite,
    queue_headers,
)
from tests.torture.wire import Answer

_TOKENS: Final = (
    *JSON_TOKENS, b'"instances"', b'"b64"', b'"parameters"', b'"signature_name"', b'"pictures"', b"/9j/", b"iVBOR",
    b"=", b"==", b"-_", b"A" * 5,
)  # fmt: skip


def _read(answer: Answer, like: np.ndarray) -> np.ndarray:
    """See seam.Read."""
    document = json.loads(answer.body)
    (values,) = document.values()
    return np.array(values, like.dtype)


def _request(asked: Asked, document: Any, name: str = "v1") -> Request:
    path = f"/v1/models/{asked.model}:predict"
    return Request(asked, name, json.dumps(document).encode(), _read, path, JSON, queue_headers(asked))


def _write(asked: Asked, chosen: Random) -> Request:
    values = {name: array.tolist() for name, array in asked.inputs.items()}
    only = next(iter(values.values())) if len(values) == 1 else None
    if only is not None and chosen.random() < 0.6:
        return _request(asked, {chosen.choice(("instances", "inputs")): only})
    if chosen.random() < 0.5:
        return _request(asked, {"inputs": values})
    rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    return _request(asked, {"instances": rows})


def _spoil(asked: Asked, chosen: Random) -> Request:
    return _request(asked, {"inputs": damaged_values(asked, chosen)}).to_be_refused()


def _write_b64(asked: Asked, chosen: Random) -> Request:
    (rows,) = asked.inputs.values()
    files = [base64.b64encode(file_of(row, "PNG")).decode() for row in rows]
    return _request(asked, {"instances": [{"b64": one} for one in files]}, "v1 b64")


def _spoil_b64(asked: Asked, chosen: Random) -> Request:
    document = json.loads(_write_b64(asked, chosen).body)
    row = chosen.choice(document["instances"])
    row["b64"] = chosen.choice(("", "====", row["b64"][:40], row["b64"] + "A", 7, None))
    return _request(asked, document, "v1 b64").to_be_refused()


KSERVE_V1: Final = (
    Protocol("v1", Carried.HTTP, _write, _spoil, _TOKENS, finite),
    Protocol("v1 b64", Carried.HTTP, _write_b64, _spoil_b64, _TOKENS, shows),
)
