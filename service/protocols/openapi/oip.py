"""What the calls of /v2 say: inference, for any model and for one, and all that is told besides."""

from collections.abc import Mapping
from typing import Any, Final

from foldserve.service.artifact.datatypes import DATATYPES
from foldserve.service.artifact.signature import ANY, TensorSpec
from foldserve.service.codecs import BodyType
from foldserve.service.engine.served import ServedModel, ServedVersion
from foldserve.service.inference.response import JSON
from foldserve.service.protocols.oip.tensors import BINARY_ONLY
from foldserve.service.protocols.openapi import responses
from foldserve.service.protocols.openapi.responses import BINARY, TEXT, header, parameter, reading, schema
from foldserve.service.protocols.openapi.tensors import Schema, example_inputs, leaf, named, numbers, title

_BINARY_TYPE: Final = BodyType.RAW.value
_LENGTH: Final = "Inference-Header-Content-Length"
_FLAG: Final[Schema] = {"type": "boolean"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_TEXTS: Final[Schema] = {"type": "array", "items": TEXT}
_SHAPE: Final[Schema] = {"type": "array", "items": {"type": "integer", "minimum": -1}}
_SIZES: Final[Schema] = {"type": "array", "items": _COUNT}
_READY: Final = named({"live": _FLAG, "ready": _FLAG})


def _optional(value: Schema) -> Schema:
    """What is not set may be null too, as clients write it whose requests are objects."""
    return {"anyOf": [value, {"type": "null"}]}


def _parameters(**known: Schema) -> Schema:
    others = {"type": ["string", "number", "boolean", "null"]}
    properties = {name: _optional(value) for name, value in known.items()}
    return _optional({"type": "object", "properties": properties, "additionalProperties": others})


SCHEMAS: Final[Mapping[str, Schema]] = {
    "InputParameters": _parameters(binary_data_size=_COUNT),
    "OutputParameters": _parameters(binary_data=_FLAG, classification=_COUNT),
    "RequestParameters": _parameters(binary_data_output=_FLAG, timeout=_COUNT, priority=_COUNT),
}


def _input(spec: TensorSpec | None) -> Schema:
    """One input: of any model, or this one."""
    datatype: Schema = {"enum": [*DATATYPES]} if spec is None else {"const": spec.datatype}
    properties: Schema = {
        "name": TEXT if spec is None else {"const": spec.name},
        "shape": _SIZES if spec is None else _shape(spec),
        "datatype": datatype,
        "data": {
            "description": "The values, flat or nested to the shape; or as bytes, with binary_data_size",
            "type": "array",
            "items": _element(spec),
        },
        "parameters": schema("InputParameters"),
    }
    return {"type": "object", "required": ["name", "shape", "datatype"], "properties": properties}


def _element(spec: TensorSpec | None) -> Schema:
    return {} if spec is None else {"anyOf": [leaf(spec), {"type": "array"}]}


def _shape(spec: TensorSpec) -> Schema:
    sizes = [{"type": "integer", "minimum": 1} if size == ANY else {"const": size} for size in spec.shape]
    exact = {"type": "array", "minItems": len(sizes), "maxItems": len(sizes)}
    return {**exact, "prefixItems": sizes} if sizes else exact


def _output(names: list[str] | None) -> Schema:
    properties = {
        "name": TEXT if names is None else {"enum": names},
        "parameters": schema("OutputParameters"),
    }
    return {"type": "object", "required": ["name"], "properties": properties}


def _infer(
    inputs: Schema, outputs: Schema, name: str, example: Any, answered: Mapping[str, Schema]
) -> Schema:
    request: Schema = {
        "title": name,
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": _optional({"type": "string", "maxLength": 1024}),
            "inputs": inputs,
            "outputs": _optional({"type": "array", "items": outputs}),
            "parameters": schema("RequestParameters"),
        },
    }
    json = {"schema": request} if example is None else {"schema": request, "example": example}
    binary = {**BINARY, "description": f"The JSON, {_LENGTH} bytes of it, and the tensors' bytes behind it"}
    ok = responses.ok(
        {JSON: {"schema": _answer(answered)}, _BINARY_TYPE: {"schema": BINARY}},
        "The outputs; as bytes behind the JSON where they are asked for so",
        {_LENGTH: header(_LENGTH)},
    )
    return {
        "parameters": [*map(parameter, (_LENGTH, "X-Request-Id", "X-Timeout-Ms", "X-Priority"))],
        "requestBody": {"required": True, "content": {JSON: json, _BINARY_TYPE: {"schema": binary}}},
        "responses": {"200": ok, **responses.refusals(responses.INFERENCE)},
    }


def _answer(described: Mapping[str, Schema]) -> Schema:
    tensor = {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            **described,
            "shape": _SIZES,
            "data": {"type": "array"},
            "parameters": {"type": "object"},
        },
    }
    properties = {
        "model_name": TEXT,
        "model_version": TEXT,
        "id": TEXT,
        "outputs": {"type": "array", "items": tensor},
    }
    required = ["model_name", "model_version", "outputs"]
    return {"type": "object", "required": required, "properties": properties}


INFER_ANY: Final = _infer(
    {"type": "array", "items": _input(None), "minItems": 1},
    _output(None),
    "infer request",
    None,
    {"name": TEXT, "datatype": {"enum": [*DATATYPES, "BYTES"]}},
)


def infer_of(model: ServedModel, version: ServedVersion) -> dict[str, Any]:
    """Inference of one version."""
    signature = version.signature
    inputs = [_input(spec) for spec in signature.inputs]
    names = [*signature.outputs_by_name]
    datatypes = sorted({spec.datatype for spec in signature.outputs} | {"BYTES"})
    return _infer(
        {
            "type": "array",
            "minItems": len(inputs),
            "maxItems": len(inputs),
            "items": inputs[0] if len(inputs) == 1 else {"anyOf": inputs},
        },
        _output(names),
        title(model.name, version.version, "infer request"),
        infer_example(version),
        {"name": {"enum": names}, "datatype": {"enum": datatypes}},
    )


def infer_example(version: ServedVersion) -> Any:
    """A body that is answered 200; None where there is none to show."""
    signature = version.signature
    arrays = example_inputs(signature)
    if arrays is None or any(
        spec.datatype in BINARY_ONLY for spec in (*signature.inputs, *signature.outputs)
    ):
        return None
    return {
        "inputs": [
            {
                "name": spec.name,
                "shape": list(arrays[spec.name].shape),
                "datatype": spec.datatype,
                "data": numbers(arrays[spec.name].reshape(-1)),
            }
            for spec in signature.inputs
        ]
    }


def _tensors(config: bool) -> Schema:
    if config:
        return {
            "type": "array",
            "items": named({"name": TEXT, "data_type": TEXT, "dims": _SHAPE}, closed=False),
        }
    return {"type": "array", "items": named({"name": TEXT, "datatype": TEXT, "shape": _SHAPE}, closed=False)}


_COUNTED: Final = named({"count": _COUNT, "ns": _COUNT})
_STATISTICS: Final = named(
    {
        "model_stats": {
            "type": "array",
            "items": named(
                {
                    "name": TEXT,
                    "version": TEXT,
                    "inference_count": _COUNT,
                    "execution_count": _COUNT,
                    "inference_stats": {"type": "object", "additionalProperties": _COUNTED},
                    "batch_stats": {"type": "array"},
                }
            ),
        }
    }
)
_INDEX_ENTRY: Final[Schema] = {
    "type": "object",
    "required": ["name", "state", "reason"],
    "properties": {
        "name": TEXT,
        "version": TEXT,
        "state": {"enum": ["READY", "LOADING", "UNAVAILABLE"]},
        "reason": TEXT,
    },
}
SERVER: Final = reading(named({"name": TEXT, "version": TEXT, "extensions": _TEXTS}))
LIVE: Final = reading(named({"live": {"const": True}}))
READY: Final = reading(_READY)
MODELS: Final = reading(named({"models": _TEXTS}))
MODEL_READY: Final = reading(named({"name": TEXT, "ready": {"const": True}}), of_model=True)
METADATA: Final = reading(
    named(
        {
            "name": TEXT,
            "versions": _TEXTS,
            "platform": TEXT,
            "inputs": _tensors(config=False),
            "outputs": _tensors(config=False),
        }
    ),
    of_model=True,
)
CONFIG: Final = reading(
    named(
        {
            "name": TEXT,
            "platform": TEXT,
            "backend": TEXT,
            "max_batch_size": _COUNT,
            "input": _tensors(config=True),
            "output": _tensors(config=True),
            "instance_group": {"type": "array", "items": {"type": "object"}},
        },
        closed=False,
    ),
    of_model=True,
)
STATISTICS: Final = reading(_STATISTICS, of_model=True)
INDEX: Final[dict[str, Any]] = {
    **reading({"type": "array", "items": _INDEX_ENTRY}, 413, 504),
    "requestBody": {
        "required": False,
        "content": {
            JSON: {
                "schema": {"type": "object", "properties": {"ready": _FLAG}},
                "example": {"ready": True},
            }
        },
    },
}
