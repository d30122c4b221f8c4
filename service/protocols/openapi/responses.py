"""What every call may answer: errors by their status, made of errors.py, and the headers.

A call names the statuses that it can answer; what each means stands once, in the document's components.
"""

from collections.abc import Mapping
from typing import Any, Final

from foldserve.service import errors
from foldserve.service.artifact.names import VERSION_NAME
from foldserve.service.errors import ServiceError
from foldserve.service.inference.response import JSON
from foldserve.service.protocols.pictures import FORM, PICTURE_TYPES

Schema = dict[str, Any]

ANYWHERE: Final = (400, 500, 501, 503, 505)
"""Whatever the call: a head that is none, a fault of the server, a coding or a version that is not spoken, no
descriptor to spare."""
OF_MODEL: Final = (*ANYWHERE, 404)
INFERENCE: Final = (*OF_MODEL, 413, 415, 429, 504)


def _codes() -> dict[int, dict[str, str]]:
    """Status -> code -> what it means."""
    by_status: dict[int, dict[str, str]] = {}
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, ServiceError) and kind is not ServiceError:
            by_status.setdefault(kind.status, {})[kind.code] = (kind.__doc__ or "").partition("\n")[0]
    return by_status


UNAUTHORIZED: Final = errors.Unauthorized.status
CODES: Final = _codes()
_LATER: Final = (429, 503)
"""Those that may say when to ask again."""
BINARY: Final[Schema] = {"type": "string", "format": "binary"}
TEXT: Final[Schema] = {"type": "string"}
PICTURES: Final[Mapping[str, Schema]] = {
    **{kind: {"schema": BINARY} for kind in PICTURE_TYPES},
    FORM: {"schema": {"type": "object", "required": ["file"], "properties": {"file": BINARY}}},
}
"""Bodies of models that take them."""
VERSION: Final[Schema] = {"type": "string", "pattern": f"^{VERSION_NAME.pattern}$"}


def _reference(kind: str, name: str) -> Schema:
    return {"$ref": f"#/components/{kind}/{name}"}


def parameter(name: str) -> Schema:
    """One of PARAMETERS."""
    return _reference("parameters", name)


def header(name: str) -> Schema:
    """One of HEADERS."""
    return _reference("headers", name)


def schema(name: str) -> Schema:
    """One of a protocol's SCHEMAS."""
    return _reference("schemas", name)


def ok(
    content: Mapping[str, Schema], description: str = "OK", headers: Mapping[str, Schema] | None = None
) -> Schema:
    """The response that is no error."""
    common = {name: header(name) for name in ("X-Request-Id", "Server-Timing")}
    return {"description": description, "headers": {**common, **(headers or {})}, "content": dict(content)}


def as_json(value: Schema) -> dict[str, Schema]:
    """A JSON body of this schema."""
    return {JSON: {"schema": value}}


def refusals(statuses: tuple[int, ...]) -> dict[str, Schema]:
    """The responses that are errors."""
    return {str(status): _reference("responses", _name(status)) for status in sorted(set(statuses))}


def reading(
    value: Schema, *statuses: int, of_model: bool = False, parameters: tuple[Schema, ...] = ()
) -> dict[str, Any]:
    """What a GET says that answers JSON of this schema. statuses: errors besides the usual ones."""
    usual = OF_MODEL if of_model else ANYWHERE
    return {
        "parameters": [*parameters, parameter("X-Request-Id")],
        "responses": {"200": ok(as_json(value)), **refusals((*usual, *statuses))},
    }


def _name(status: int) -> str:
    return f"Error{status}"


def _error(status: int, codes: Mapping[str, str]) -> Schema:
    names = ["X-Request-Id", "Server-Timing"]
    names += ["Retry-After"] if status in _LATER else ["WWW-Authenticate"] if status == UNAUTHORIZED else []
    headers = {name: header(name) for name in names}
    body = {
        "type": "object",
        "required": ["error", "code"],
        "additionalProperties": False,
        "properties": {
            "error": {
                "type": "string",
                "description": "What is wrong, what was expected, and the mend: for people",
            },
            "code": {"enum": list(codes), "description": "For programs; stays"},
        },
    }
    meanings = "\n".join(f"- `{code}`: {meaning}" for code, meaning in codes.items())
    return {"description": meanings, "headers": headers, "content": as_json(body)}


def _header(description: str, value: Schema) -> Schema:
    return {"description": description, "schema": value}


RESPONSES: Final = {_name(status): _error(status, codes) for status, codes in sorted(CODES.items())}
HEADERS: Final = {
    "X-Request-Id": _header("The request's own id, or one that the server made: it stands in the log", TEXT),
    "Server-Timing": _header(
        'Milliseconds by stage, and the rows of the batch: `decode;dur=0.021, run;dur=0.110, batch;desc="8"`',
        TEXT,
    ),
    "Retry-After": _header("Seconds until a place is likely to be free", {"type": "integer", "minimum": 1}),
    "WWW-Authenticate": _header("How a key is sent: `Bearer`", TEXT),
    "X-Tensor-Name": _header("Which output a raw or npy answer holds", TEXT),
    "X-Tensor-Datatype": _header("The datatype of a raw or npy answer", TEXT),
    "X-Tensor-Shape": _header("The shape of a raw or npy answer: `2,5`", TEXT),
    "Inference-Header-Content-Length": _header(
        "Bytes of the JSON before the tensors' bytes", {"type": "integer", "minimum": 0}
    ),
}


def _parameter(name: str, where: str, description: str, value: Schema) -> Schema:
    return {"name": name, "in": where, "description": description, "schema": value}


PARAMETERS: Final = {
    name: _parameter(name, where, description, schema)
    for name, where, description, schema in (
        ("version", "query", "The version to run; the default one otherwise", VERSION),
        ("output", "query", "Answer with this output only", {"type": "string", "minLength": 1}),
        (
            "top",
            "query",
            "Add the labels of so many of the largest scores of each row to a JSON answer",
            {"type": "integer", "minimum": 1, "maximum": 4096},
        ),
        (
            "X-Request-Id",
            "header",
            "Comes back in the answer, and stands in the log; 128 characters at most",
            TEXT,
        ),
        (
            "X-Timeout-Ms",
            "header",
            "The time that the whole request may take, in milliseconds; up to six decimals are read too",
            {"type": "integer", "minimum": 1, "maximum": 86_400_000},
        ),
        (
            "X-Priority",
            "header",
            "Its priority level in the queue, where the model has several: 1 = the first served, 0 = the default",
            {"type": "integer", "minimum": 0, "maximum": 10**15 - 1},
        ),
        (
            "X-Tensor-Shape",
            "header",
            "The shape of a raw body, where its size does not settle it: `2,3`",
            TEXT,
        ),
        (
            "Inference-Header-Content-Length",
            "header",
            "Where bytes of tensors follow the JSON: its length. 0: the body is one tensor's bytes",
            {"type": "integer", "minimum": 0},
        ),
    )
}
TENSOR_HEADERS: Final = {
    name: header(name) for name in ("X-Tensor-Name", "X-Tensor-Datatype", "X-Tensor-Shape")
}
COMPONENTS: Final[Schema] = {"responses": RESPONSES, "headers": HEADERS, "parameters": PARAMETERS}
