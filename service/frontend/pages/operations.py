"""What /openapi.json says of the server's own calls: health, information, metrics, and the page."""

from typing import Any, Final

from foldserve.service.protocols.openapi.responses import ANYWHERE, TEXT, ok, parameter, reading, refusals
from foldserve.service.protocols.openapi.tensors import named

_FLAG: Final = {"type": "boolean"}
_WHOLE: Final = {"type": "integer", "minimum": 0}
_TENSOR: Final = named(
    {"name": TEXT, "datatype": TEXT, "shape": {"type": "array", "items": {"type": "integer"}}}
)
_WORKER: Final = named(
    {
        "device": TEXT,
        "ready": _FLAG,
        "batch_buckets": {"type": "array", "items": _WHOLE},
        "batch_ceiling_rows": _WHOLE,
        "notes": {"type": "array", "items": TEXT},
    }
)
_VERSION: Final = named(
    {
        "version": TEXT,
        "ready": _FLAG,
        "backend": TEXT,
        "max_batch_size": _WHOLE,
        "priority_levels": _WHOLE,
        "default_priority_level": _WHOLE,
        "inputs": {"type": "array", "items": _TENSOR},
        "outputs": {"type": "array", "items": _TENSOR},
        "workers": {"type": "array", "items": _WORKER},
        "manifest": {"type": "object"},
    }
)
_MODEL: Final = named(
    {
        "name": TEXT,
        "ready": _FLAG,
        "default_version": TEXT,
        "versions": {"type": "array", "items": _VERSION},
    }
)


def _content(*types: str, statuses: tuple[int, ...] = ()) -> dict[str, Any]:
    """A GET that answers a text of one of these types."""
    return {
        "parameters": [parameter("X-Request-Id")],
        "responses": {
            "200": ok({kind: {"schema": TEXT} for kind in types}),
            **refusals((*ANYWHERE, *statuses)),
        },
    }


READY: Final = reading(named({"live": {"const": True}, "ready": {"const": True}}))
INFO: Final = reading(
    named(
        {
            "name": {"const": "foldserve"},
            "version": TEXT,
            "compiled": _FLAG,
            "ready": _FLAG,
            "draining": _FLAG,
            "default_model": {"type": ["string", "null"]},
            "limits": {"type": "object"},
            "models": {"type": "array", "items": _MODEL},
            "broken": {"type": "array", "items": named({"name": TEXT, "problem": TEXT})},
        }
    )
)
METRICS: Final = _content("text/plain", "application/openmetrics-text")
PAGE: Final = _content("text/html")
FILES: Final = _content("text/javascript", "text/css", "image/svg+xml", statuses=(404,))
DOCUMENT: Final = reading({"type": "object", "required": ["openapi", "info", "paths"]})
