"""What the server says about itself to programs: /info and /openapi.json. (To people: docs.py.)

Pure functions from what is served, the settings and the table of routes.
"""

import re
from collections.abc import Iterable
from importlib.metadata import version as distribution_version
from typing import Any, Final

from foldserve.service.artifact.signature import TensorSpec
from foldserve.service.engine.served import ServedBy, ServedModel, Status
from foldserve.service.metrics.recorder import is_compiled
from foldserve.service.protocols.lookup import only_model
from foldserve.service.protocols.routes import Route
from foldserve.service.settings import ServeSettings


def info(status: Status, settings: ServeSettings) -> dict[str, Any]:
    """The body of GET /info."""
    return {
        "name": "foldserve",
        "version": distribution_version("foldserve"),
        "compiled": is_compiled(),
        "ready": status.ready(),
        "draining": status.draining(),
        "default_model": _default_model(status, settings),
        "limits": {
            "max_body_bytes": settings.max_body_bytes,
            "max_json_bytes": settings.max_json_bytes,
            "request_timeout_ms": settings.request_timeout_ms,
        },
        "models": [_model_info(status, model) for _, model in sorted(status.models().items())],
        "broken": [{"name": name, "problem": problem} for name, problem in sorted(status.broken().items())],
    }


def _default_model(status: Status, settings: ServeSettings) -> str | None:
    models = status.models()
    alone = len(models) == 1 and only_model(models, status.broken())
    return settings.default_model or (next(iter(models)) if alone else None)


def _model_info(status: Status, model: ServedModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "ready": model.ready,
        "default_version": model.default_version,
        "versions": [
            {
                "version": version.version,
                "ready": version.ready,
                "backend": version.backend,
                "max_batch_size": version.max_batch_size,
                "priority_levels": version.priority_levels,
                "default_priority_level": version.default_priority_level,
                "inputs": [_spec_info(spec) for spec in version.signature.inputs],
                "outputs": [_spec_info(spec) for spec in version.signature.outputs],
                "workers": [_worker_info(by) for by in status.served_by(model.name, version.version)],
                "manifest": dict(version.manifest),
            }
            for version in model.versions.values()
        ],
    }


def _worker_info(by: ServedBy) -> dict[str, Any]:
    return {
        "device": by.device,
        "ready": by.ready,
        "batch_buckets": list(by.batch_buckets),
        "batch_ceiling_rows": by.batch_ceiling_rows,
        "notes": list(by.notes),
    }


def _spec_info(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def openapi(routes: Iterable[Route]) -> dict[str, Any]:
    """The body of GET /openapi.json."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        described = route.operation or _READING
        in_path = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"\{(\w+)\}", route.path)
        ]
        paths.setdefault(route.path, {})[route.method.lower()] = {
            **described,
            "summary": route.summary,
            "parameters": [*in_path, *described["parameters"]],
            "responses": {**described["responses"], "default": {"$ref": "#/components/responses/Error"}},
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "foldserve", "version": distribution_version("foldserve")},
        "paths": paths,
        "components": _COMPONENTS,
    }


_READING: Final[dict[str, Any]] = {"parameters": [], "responses": {"200": {"description": "OK"}}}
_TEXT: Final = {"type": "string"}
_SCORE: Final = {
    "type": "object",
    "required": ["label", "score"],
    "properties": {"label": _TEXT, "score": {"type": "number"}},
}
_COMPONENTS: Final[dict[str, Any]] = {
    "responses": {
        "Error": {
            "description": "Every response that is an error",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
    },
    "schemas": {
        "Error": {
            "type": "object",
            "required": ["error", "code"],
            "properties": {"error": _TEXT, "code": _TEXT},
        },
        "Tensor": {
            "type": ["array", "number", "boolean"],
            "description": (
                "Nested lists; the first level counts the rows, unless the model has max_batch_size 0 in /info; no "
                "list where it has no dims"
            ),
            "items": {},
        },
        "Inputs": {
            "type": "object",
            "required": ["inputs"],
            "additionalProperties": False,
            "properties": {
                "inputs": {
                    "oneOf": [
                        {"$ref": "#/components/schemas/Tensor"},
                        {
                            "type": "object",
                            "additionalProperties": {"$ref": "#/components/schemas/Tensor"},
                        },
                    ]
                }
            },
        },
        "Outputs": {
            "type": "object",
            "required": ["model", "version", "outputs"],
            "properties": {
                "model": _TEXT,
                "version": _TEXT,
                "outputs": {
                    "type": "object",
                    "additionalProperties": {"$ref": "#/components/schemas/Tensor"},
                },
                "top": {
                    "type": "array",
                    "description": "With ?top=: labels and scores, the largest first; of several rows a list for each",
                    "items": {"oneOf": [_SCORE, {"type": "array", "items": _SCORE}]},
                },
            },
        },
    },
}
