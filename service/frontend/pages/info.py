"""/info: what the server says about itself to programs.

Pure functions from what is served and the settings.
"""

from importlib.metadata import version as distribution_version
from typing import Any

from foldserve.service.artifact.signature import TensorSpec
from foldserve.service.engine.served import ServedBy, ServedModel, Status
from foldserve.service.metrics.recorder import is_compiled
from foldserve.service.protocols.lookup import only_model
from foldserve.service.settings import ServeSettings


def info(status: Status, settings: ServeSettings) -> dict[str, Any]:
    """The body of GET /info."""
    return {
        "name": "foldserve",
        "version": distribution_version("foldserve"),
        "compiled": is_compiled(),
        "ready": status.ready(),
        "draining": status.draining(),
        "default_model": default_model(status, settings),
        "limits": {
            "max_body_bytes": settings.max_body_bytes,
            "max_json_bytes": settings.max_json_bytes,
            "request_timeout_ms": settings.request_timeout_ms,
        },
        "models": [_model_info(status, model) for _, model in sorted(status.models().items())],
        "broken": [{"name": name, "problem": problem} for name, problem in sorted(status.broken().items())],
    }


def default_model(status: Status, settings: ServeSettings) -> str | None:
    """The model of requests that name none."""
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
