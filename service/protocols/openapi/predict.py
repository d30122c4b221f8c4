"""What the calls of /predict say: for any model, and for one."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from foldserve.service.artifact.signature import ANY, Signature, TensorSpec
from foldserve.service.codecs import BodyType
from foldserve.service.codecs.protocol import Served
from foldserve.service.engine.served import ServedModel, ServedVersion
from foldserve.service.errors import BadRequest
from foldserve.service.protocols.openapi import responses
from foldserve.service.protocols.openapi.responses import BINARY, TEXT, parameter, schema
from foldserve.service.protocols.openapi.tensors import (
    ANY_TENSOR,
    Schema,
    by_name,
    example_inputs,
    example_shapes,
    named,
    nested,
    numbers,
    one_of,
    title,
)
from foldserve.service.protocols.top import scores_output

_ERRORS: Final = (*responses.INFERENCE, 406)
_COMMON: Final = tuple(map(parameter, ("X-Request-Id", "X-Timeout-Ms", "X-Priority")))
_SCORE: Final = named({"label": TEXT, "score": {"type": "number"}})
SCHEMAS: Final[Mapping[str, Schema]] = {
    "Top": {
        "description": "With ?top=: labels and scores, the largest first; of several rows a list for each",
        "type": "array",
        "items": {"anyOf": [_SCORE, {"type": "array", "items": _SCORE}]},
    }
}


def _any_model() -> dict[str, Any]:
    every = {"type": "object", "additionalProperties": ANY_TENSOR}
    inputs = named({"inputs": {"anyOf": [ANY_TENSOR, every]}})
    names = ("output", "top", "X-Tensor-Shape")
    return {
        "parameters": [*map(parameter, names), *_COMMON],
        "requestBody": _request({"schema": inputs}, several=False, pictures=True),
        "responses": _responses(every, several=False),
    }


def of_model(model: ServedModel, version: ServedVersion) -> dict[str, Any]:
    """Of a model's default version, beside which the query may name another."""
    said = of_version(model, version)
    chosen = {**_inline("version"), "schema": {"enum": list(model.versions)}}
    return {**said, "parameters": [chosen, *said["parameters"]]}


def of_version(model: ServedModel, version: ServedVersion) -> dict[str, Any]:
    """Of one version."""
    signature = version.signature
    several = len(signature.outputs) > 1
    whole = Served(model.name, version.version, signature, tuple(version.manifest.get("labels", ())))
    parameters = []
    if several:
        parameters.append({**_inline("output"), "schema": {"enum": list(signature.outputs_by_name)}})
    if _has_scores(whole, signature.outputs_by_name):
        parameters.append(parameter("top"))
    if len(signature.inputs) == 1 and ANY in signature.inputs[0].row_shape:
        parameters.append(parameter("X-Tensor-Shape"))
    outputs = by_name(signature.outputs, output=True)
    if several:
        del outputs["required"]  # ?output= chooses one
    return {
        # For the page at /docs, where an example has too many numbers for this document.
        "x-example-shapes": {name: list(shape) for name, shape in example_shapes(signature).items()},
        "parameters": [*parameters, *_COMMON],
        "requestBody": _request(
            _json_request(model, version),
            several=len(signature.inputs) > 1,
            pictures="image" in version.manifest,
            raw=_raw(signature.inputs[0]),
        ),
        "responses": _responses(
            {"title": title(model.name, version.version, "outputs"), **outputs}, several=several
        ),
    }


def _inline(name: str) -> Schema:
    return responses.PARAMETERS[name]


def _json_request(model: ServedModel, version: ServedVersion) -> Schema:
    signature = version.signature
    alone = nested(signature.inputs[0]) if len(signature.inputs) == 1 else None
    body = named({"inputs": one_of(alone, by_name(signature.inputs))})
    content: Schema = {"schema": {"title": title(model.name, version.version, "inputs"), **body}}
    example = json_example(signature)
    return content if example is None else {**content, "example": example}


def json_example(signature: Signature) -> Any:
    """A body that is answered 200; None where there is none to show."""
    inputs = example_inputs(signature)
    if inputs is None:
        return None
    values = {name: numbers(array) for name, array in inputs.items()}
    return {"inputs": values if len(values) > 1 else next(iter(values.values()))}


def _has_scores(served: Served, names: Iterable[str]) -> bool:
    """Whether ?top= can be asked for, without an output being chosen or with one."""
    for chosen in (tuple(names), *((name,) for name in names)):
        try:
            scores_output(served, chosen)
        except BadRequest:
            continue
        return True
    return False


def _raw(spec: TensorSpec) -> str:
    size = f"{spec.datatype}, little-endian, {list(spec.shape)}: -1 is any size"
    return f"The numbers of input {spec.name!r} and nothing else: {size}"


def _request(json: Schema, *, several: bool, pictures: bool, raw: str = "One tensor's numbers") -> Schema:
    """The body. several: inputs, which no array holds."""
    content: dict[str, Schema] = {BodyType.JSON.value: json}
    if not several:
        content[BodyType.RAW.value] = {"schema": {**BINARY, "description": raw}}
        content[BodyType.NPY.value] = {"schema": {**BINARY, "description": "A file of numpy.save's"}}
        content.update(responses.PICTURES if pictures else {})
    return {"required": True, "content": content}


def _responses(outputs: Schema, *, several: bool) -> Schema:
    answer = {"type": "object", "required": ["model", "version", "outputs"]}
    properties = {"model": TEXT, "version": TEXT, "outputs": outputs, "top": schema("Top")}
    content = {
        BodyType.JSON.value: {"schema": {**answer, "properties": properties}},
        **{kind.value: {"schema": BINARY} for kind in (BodyType.RAW, BodyType.NPY)},
    }
    description = "The outputs: all as JSON, or one as an array" if several else "The outputs"
    ok = responses.ok(content, description, responses.TENSOR_HEADERS)
    return {"200": ok, **responses.refusals(_ERRORS)}


ANY_VERSION: Final = _any_model()
ANY_MODEL: Final = {**ANY_VERSION, "parameters": [parameter("version"), *ANY_VERSION["parameters"]]}
