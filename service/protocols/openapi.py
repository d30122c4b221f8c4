"""What /openapi.json says of inference calls; the schemas that it names are frontend/pages/info.py's."""

from typing import Any, Final

from foldserve.service.codecs import BodyType
from foldserve.service.protocols.pictures import FORM, PICTURE_TYPES


def _predict() -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    form = {"schema": {"type": "object", "properties": {"file": binary["schema"]}}}
    pictures = {**dict.fromkeys(PICTURE_TYPES, binary), FORM: form}

    def bodies(schema: str) -> dict[str, Any]:
        reference = {"schema": {"$ref": f"#/components/schemas/{schema}"}}
        return {kind.value: reference if kind is BodyType.JSON else binary for kind in BodyType}

    def parameter(name: str, where: str, description: str) -> dict[str, Any]:
        return {"name": name, "in": where, "description": description, "schema": {"type": "string"}}

    return {
        "parameters": [
            parameter("version", "query", "The version to run; the default one otherwise"),
            parameter("output", "query", "Answer with this output only"),
            parameter("top", "query", "Add the labels of so many of the largest scores of each row"),
            parameter("X-Request-Id", "header", "Comes back in the answer and stands in the log"),
            parameter("X-Timeout-Ms", "header", "The time that the whole request may take, in milliseconds"),
            parameter(
                "X-Priority",
                "header",
                "Its priority level in the queue, 1 = the first served, 0 = the default",
            ),
            parameter(
                "X-Tensor-Shape", "header", "The shape of a raw body, when its size does not settle it"
            ),
        ],
        "requestBody": {"required": True, "content": {**bodies("Inputs"), **pictures}},
        "responses": {"200": {"description": "The outputs", "content": bodies("Outputs")}},
    }


PREDICT_OPERATION: Final = _predict()
