"""What /openapi.json says of inference calls; the schemas that it names are frontend/pages/info.py's."""

from typing import Any, Final

from foldserve.service.codecs import BodyType


def _predict() -> dict[str, Any]:
    def bodies(schema: str) -> dict[str, Any]:
        binary = {"schema": {"type": "string", "format": "binary"}}
        reference = {"schema": {"$ref": f"#/components/schemas/{schema}"}}
        return {kind.value: reference if kind is BodyType.JSON else binary for kind in BodyType}

    def parameter(name: str, where: str, description: str) -> dict[str, Any]:
        return {"name": name, "in": where, "description": description, "schema": {"type": "string"}}

    return {
        "parameters": [
            parameter("version", "query", "The version to run; the default one otherwise"),
            parameter("output", "query", "Answer with this output only"),
            parameter("X-Request-Id", "header", "Comes back in the answer and stands in the log"),
            parameter("X-Timeout-Ms", "header", "The time that the whole request may take, in milliseconds"),
            parameter(
                "X-Tensor-Shape", "header", "The shape of a raw body, when its size does not settle it"
            ),
        ],
        "requestBody": {"required": True, "content": bodies("Inputs")},
        "responses": {"200": {"description": "The outputs", "content": bodies("Outputs")}},
    }


PREDICT_OPERATION: Final = _predict()
