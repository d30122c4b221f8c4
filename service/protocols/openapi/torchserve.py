"""What TorchServe's calls say: for any model, and for one."""

from typing import Any, Final

from foldserve.service.artifact.signature import Signature
from foldserve.service.codecs.protocol import Served
from foldserve.service.engine.served import ServedModel, ServedVersion
from foldserve.service.inference.response import JSON
from foldserve.service.protocols.openapi import kserve_v1, responses
from foldserve.service.protocols.openapi.responses import TEXT, parameter, reading
from foldserve.service.protocols.openapi.tensors import (
    Schema,
    by_name,
    example_inputs,
    named,
    nested,
    numbers,
    one_of,
    title,
)
from foldserve.service.protocols.top import scores_outputs

ALL: Final = "all"
"""In a path, instead of a version: each of them."""
_BASE64: Final[Schema] = {
    "type": "string",
    "contentEncoding": "base64",
    "description": "A JPEG or PNG file",
}
_PROBABILITIES: Final[Schema] = {
    "type": "object",
    "description": "The most probable labels, the first first",
    "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1},
}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_WORKER: Final = named({"id": TEXT, "status": {"enum": ["READY", "UNLOADING"]}, "gpu": {"type": "boolean"}})
_VERSION: Final = named(
    {
        "modelName": TEXT,
        "modelVersion": TEXT,
        "modelUrl": TEXT,
        "runtime": {"const": "python"},
        "minWorkers": _COUNT,
        "maxWorkers": _COUNT,
        "batchSize": {"type": "integer", "minimum": 1},
        "loadedAtStartup": {"type": "boolean"},
        "workers": {"type": "array", "items": _WORKER},
    }
)
MODELS: Final = reading(
    named({"models": {"type": "array", "items": named({"modelName": TEXT, "modelUrl": TEXT})}})
)
DESCRIBED: Final = reading({"type": "array", "items": _VERSION}, of_model=True)


def _operation(json: Schema, answer: Schema, *, pictures: bool) -> dict[str, Any]:
    content = {JSON: json, **(responses.PICTURES if pictures else {})}
    return {
        "parameters": [*map(parameter, ("X-Request-Id", "X-Timeout-Ms", "X-Priority"))],
        "requestBody": {"required": True, "content": content},
        "responses": {
            "200": responses.ok(responses.as_json(answer), "One row, or all of them"),
            **responses.refusals(responses.INFERENCE),
        },
    }


PREDICT_ANY: Final = _operation({"schema": {}}, {}, pictures=True)


def predict_of(model: ServedModel, version: ServedVersion) -> dict[str, Any]:
    """Prediction of one version."""
    signature = version.signature
    image = version.manifest.get("image")
    values = _values(signature, image is not None)
    forms = [*values, *([_wrapped(one_of(*values))] if values else [])]
    forms += kserve_v1.objects_of(signature, image)
    json: Schema = {
        "schema": {
            "title": title(model.name, version.version, "predictions request"),
            "anyOf": forms,
        }
    }
    example = _example(signature)
    if example is not None:
        json["example"] = example
    return _operation(json, _answer(model, version), pictures=image is not None and bool(values))


def put_of(model: ServedModel, version: ServedVersion) -> dict[str, Any]:
    """The same call, of which a document that is to stay short says once what the body is: under POST."""
    return PREDICT_ANY


def _wrapped(values: Schema) -> Schema:
    """An object of one of these keys."""
    one = {"type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": False}
    return {**one, "patternProperties": {"^(data|body)$": values}}


def _values(signature: Signature, takes_pictures: bool) -> list[Schema]:
    """A row or rows of the only input; nothing where there are several."""
    if len(signature.inputs) > 1:
        return []
    (spec,) = signature.inputs
    forms = [nested(spec)] if spec.shape else []
    if spec.counts_rows and len(spec.shape) > 1:
        forms.append(nested(spec, rows=False))
    if takes_pictures:
        forms += [_BASE64, {"type": "array", "minItems": 1, "items": kserve_v1.PICTURE}]
    return forms


def _answer(model: ServedModel, version: ServedVersion) -> Schema:
    signature = version.signature
    outputs = signature.outputs
    served = Served(model.name, version.version, signature, tuple(version.manifest.get("labels", ())))
    if served.labels and len(scores_outputs(served, signature.outputs_by_name)) == 1:
        row, rows = _PROBABILITIES, {"type": "array", "items": _PROBABILITIES}
        return one_of(row, rows, named({"predictions": rows}))
    if len(outputs) == 1:
        rows = nested(outputs[0], output=True)
        row = nested(outputs[0], rows=False, output=True)
    elif signature.counts_rows:
        row = named({spec.name: nested(spec, rows=False, output=True) for spec in outputs})
        rows = {"type": "array", "items": row}
    else:
        row = rows = by_name(outputs, output=True)
    alone = [row, rows] if signature.counts_rows else [rows]
    return one_of(*alone, kserve_v1.answers_of(signature))


def _example(signature: Signature) -> Any:
    """A body that is answered 200: a row, where there is one input; None where there is none to show."""
    inputs = example_inputs(signature)
    if inputs is None or len(inputs) > 1 or not signature.counts_rows:
        return kserve_v1.example_of(signature)
    (rows,) = (numbers(array) for array in inputs.values())
    return {"data": rows}
