"""What the calls for clients' shared memory say (protocols/oip/region_calls.py)."""

from typing import Any, Final

from foldserve.service.inference.response import JSON
from foldserve.service.protocols.openapi import responses
from foldserve.service.protocols.openapi.responses import TEXT, parameter, reading
from foldserve.service.protocols.openapi.tensors import Schema, named

NAME: Final[Schema] = {"type": "string", "minLength": 1, "description": "Of the region, as requests name it"}
_BYTES: Final[Schema] = {"type": "integer", "minimum": 0}
_SIZE: Final[Schema] = {"type": "integer", "minimum": 1}
_KEY: Final[Schema] = {"type": "string", "description": "The object as shm_open(3) names it: `/name`"}
STATUS: Final = reading(
    {
        "type": "array",
        "items": named({"name": TEXT, "key": TEXT, "offset": _BYTES, "byte_size": _SIZE}),
    }
)
CUDA_STATUS: Final = reading({"type": "array", "maxItems": 0})


def _change(**more: Any) -> dict[str, Any]:
    """A call that is answered with nothing but 200."""
    done = responses.ok({}, "Done; the body is empty")
    return {
        "parameters": [parameter("X-Request-Id")],
        "responses": {"200": done, **responses.refusals((*responses.ANYWHERE, 413, 504))},
        **more,
    }


REGISTER: Final = _change(
    requestBody={
        "required": True,
        "content": {
            JSON: {
                "schema": {
                    "type": "object",
                    "required": ["key", "byte_size"],
                    "properties": {"key": _KEY, "offset": _BYTES, "byte_size": _SIZE},
                }
            }
        },
    }
)
UNREGISTER: Final = _change()
