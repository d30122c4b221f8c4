"""What the calls of /v1 say, and SageMaker's: for any model, and for one."""

from collections.abc import Mapping
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

Image = Mapping[str, Any] | None
"""The manifest's, of a model that takes pictures."""
PICTURE: Final = {
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


def _forms(rows: Schema | None, columns: Schema) -> list[Schema]:
    """What an object may be: columns, or rows, where they are counted."""
    forms = [{**_form("inputs", columns), "title": "columns"}]
    return forms if rows is None else [*forms, {**_form("instances", rows), "title": "rows"}]


def _form(key: str, values: Schema) -> Schema:
    form = named({key: values})
    return {**form, "properties": {**form["properties"], **_PASSED_OVER}}


def _operation(
    objects: list[Schema], rows: Schema | None, answers: Schema, name: str = "", example: Any = None
) -> dict[str, Any]:
    alone = [] if rows is None else [{**rows, "title": "rows alone"}]
    schema = {**({"title": name} if name else {}), "anyOf": [*objects, *alone]}
    json = {"schema": schema} if example is None else {"schema": schema, "example": example}
    return {
        "parameters": [*map(parameter, ("X-Request-Id", "X-Timeout-Ms", "X-Priority"))],
        "requestBody": {"required": True, "content": {JSON: json}},
        "responses": {
            "200": responses.ok(responses.as_json(answers), "As rows, or as columns"),
            **responses.refusals(responses.INFERENCE),
        },
    }


def _answers(outputs: Schema, *, rows: bool) -> Schema:
    """Columns, or rows, where they are counted."""
    columns = named({"outputs": outputs})
    return one_of(columns, named({"predictions": {"type": "array"}}) if rows else None)


_ROWS: Final[Schema] = {"type": "array", "minItems": 1}
PREDICT_ANY: Final = _operation(_forms(_ROWS, {}), _ROWS, _answers({}, rows=True))
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
    return _operation(
        objects_of(signature, image),
        _rows(signature, image) if signature.counts_rows else None,
        answers_of(signature),
        title(model.name, version.version, "predict request"),
        example_of(signature),
    )


def objects_of(signature: Signature, image: Image) -> list[Schema]:
    """What a body that is an object may be."""
    taken = _pictures(image)
    only = signature.inputs[0] if len(signature.inputs) == 1 else None
    alone = None if only is None else nested(only)
    several = {name: {"type": "array", "minItems": 1, "items": schema} for name, schema in taken.items()}
    pictures = several.get(only.name) if only is not None else None
    columns = one_of(alone, pictures, by_name(signature.inputs, pictures=several))
    return _forms(_rows(signature, image) if signature.counts_rows else None, columns)


def answers_of(signature: Signature) -> Schema:
    """What a body is answered."""
    answered = signature.outputs
    outputs = nested(answered[0], output=True) if len(answered) == 1 else by_name(answered, output=True)
    return _answers(outputs, rows=signature.counts_rows)


def _pictures(image: Image) -> dict[str, Schema]:
    """What a row of an input may be besides."""
    return {image["input"]: PICTURE} if image else {}


def _rows(signature: Signature, image: Image) -> Schema:
    """Rows, all of one form: values of the only input, or objects."""
    pictures = _pictures(image)
    one = {spec.name: one_of(nested(spec, rows=False), pictures.get(spec.name)) for spec in signature.inputs}
    forms = [named(one)]
    if len(signature.inputs) == 1:
        (spec,) = signature.inputs
        forms += [nested(spec, rows=False), *([pictures[spec.name]] if spec.name in pictures else [])]
    return one_of(*({"type": "array", "minItems": 1, "items": form} for form in forms))


def example_of(signature: Signature) -> Any:
    """A body that is answered 200; None where there is none to show."""
    inputs = example_inputs(signature)
    if inputs is None:
        return None
    values = {name: numbers(array) for name, array in inputs.items()}
    if not signature.counts_rows:
        return {"inputs": values if len(values) > 1 else next(iter(values.values()))}
    row = {name: value[0] for name, value in values.items()}
    return {"instances": [row if len(row) > 1 else next(iter(row.values()))]}
