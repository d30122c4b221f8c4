"""What the calls of /v1 say, and SageMaker's: for any model, and for one."""

from typing import Any, Final

from foldserve.service.artifact.signature import Signature
from foldserve.service.engine.served import ServedModel, ServedVersion
from foldserve.service.inference.response import JSON
from foldserve.service.protocols.openapi import responses
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
from foldserve.service.protocols.pictures import B64

_PICTURE: Final = {
    **named({B64: {"type": "string", "contentEncoding": "base64"}}),
    "description": "A JPEG or PNG file",
}
_PASSED_OVER: Final[Schema] = {"signature_name": {}, "parameters": {}}
_STATE: Final = named(
    {
        "name": TEXT,
        "ready": {"type": "boolean"},
        "model_version_status": {
            "type": "array",
            "items": named(
                {"version": TEXT, "state": {"enum": ["AVAILABLE", "LOADING"]}, "status": {"type": "object"}}
            ),
        },
    }
)


def _forms(rows: Schema | None, columns: Schema) -> Schema:
    """The body: rows, where they are counted, or columns."""
    forms = [{**_form("inputs", columns), "title": "columns"}]
    if rows is not None:
        forms += [{**_form("instances", rows), "title": "rows"}, {**rows, "title": "rows alone"}]
    return {"anyOf": forms}


def _form(key: str, values: Schema) -> Schema:
    form = named({key: values})
    return {**form, "properties": {**form["properties"], **_PASSED_OVER}}


def _operation(
    schema: Schema, predictions: Schema | None, outputs: Schema, example: Any = None
) -> dict[str, Any]:
    json = {"schema": schema} if example is None else {"schema": schema, "example": example}
    answers = [named({"outputs": outputs})]
    if predictions is not None:
        answers.append(named({"predictions": predictions}))
    return {
        "parameters": [*map(parameter, ("X-Request-Id", "X-Timeout-Ms", "X-Priority"))],
        "requestBody": {"required": True, "content": {JSON: json}},
        "responses": {
            "200": responses.ok(responses.as_json({"anyOf": answers}), "As rows, or as columns"),
            **responses.refusals(responses.INFERENCE),
        },
    }


_ROWS: Final[Schema] = {"type": "array", "minItems": 1}
PREDICT_ANY: Final = _operation(_forms(_ROWS, {}), {"type": "array"}, {})
_STATE_KNOWN: Final = reading(_STATE, of_model=True)
STATE: Final[dict[str, Any]] = {
    **_STATE_KNOWN,
    "responses": {
        **_STATE_KNOWN["responses"],
        "503": {
            "description": "The same, of a model that is not ready; or an error",
            "headers": responses.RESPONSES["Error503"]["headers"],
            "content": responses.as_json(
                {"anyOf": [_STATE, responses.RESPONSES["Error503"]["content"][JSON]["schema"]]}
            ),
        },
    },
}
MODELS: Final = reading(named({"models": {"type": "array", "items": TEXT}}))
ALIVE: Final = reading(named({"status": {"const": "alive"}}))
PING: Final = reading(named({"status": {"const": "Healthy"}}))


def predict_of(model: ServedModel, version: ServedVersion) -> dict[str, Any]:
    """Prediction of one version."""
    signature = version.signature
    image = version.manifest.get("image")
    taken = {image["input"]: _PICTURE} if image else {}
    only = signature.inputs[0] if len(signature.inputs) == 1 else None
    alone = None if only is None else nested(only)
    several = {name: {"type": "array", "minItems": 1, "items": schema} for name, schema in taken.items()}
    pictures = several.get(only.name) if only is not None else None
    columns = one_of(alone, pictures, by_name(signature.inputs, pictures=several))
    rows = _rows(signature, taken) if signature.counts_rows else None
    answered = signature.outputs
    outputs = nested(answered[0], output=True) if len(answered) == 1 else by_name(answered, output=True)
    name = title(model.name, version.version, "predict request")
    return _operation(
        {"title": name, **_forms(rows, columns)},
        {"type": "array"} if signature.counts_rows else None,
        outputs,
        _example(signature),
    )


def _rows(signature: Signature, pictures: dict[str, Schema]) -> Schema:
    """Rows, all of one form: values of the only input, or objects."""
    one = {spec.name: one_of(nested(spec, rows=False), pictures.get(spec.name)) for spec in signature.inputs}
    forms = [named(one)]
    if len(signature.inputs) == 1:
        (spec,) = signature.inputs
        forms += [nested(spec, rows=False), *([pictures[spec.name]] if spec.name in pictures else [])]
    return one_of(*({"type": "array", "minItems": 1, "items": form} for form in forms))


def _example(signature: Signature) -> Any:
    inputs = example_inputs(signature)
    if inputs is None:
        return None
    values = {name: numbers(array) for name, array in inputs.items()}
    if not signature.counts_rows:
        return {"inputs": values if len(values) > 1 else next(iter(values.values()))}
    row = {name: value[0] for name, value in values.items()}
    return {"instances": [row if len(row) > 1 else next(iter(row.values()))]}
