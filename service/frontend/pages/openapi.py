"""/openapi.json: the routes and, with names, shapes and labels, each model that is loaded now.

A model's part is made when it is loaded or changes, in its own turn of the event loop, and kept as bytes: a hundred
models take some milliseconds in all, and no request waits for more than one of them. The document is bounded too: of a
version with very many tensors, and of versions beyond a number, only what holds for any model is said.
"""

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version as distribution_version
from typing import Any, Final

import orjson

from foldserve.service.engine.served import ServedModel, ServedVersion, Status
from foldserve.service.frontend.pages.info import default_model
from foldserve.service.frontend.pages.security import SCHEMES, USUAL, secured
from foldserve.service.frontend.pages.site import page_files
from foldserve.service.protocols.openapi import oip, predict, regions, torchserve
from foldserve.service.protocols.openapi.responses import COMPONENTS, VERSION
from foldserve.service.protocols.routes import Route
from foldserve.service.settings import ServeSettings

_MOST_TENSORS: Final = 64
"""Of a version that is described; each takes about a kilobyte in each of its calls."""
_MOST_VERSIONS: Final = 250
"""Versions that are described: the document has a few megabytes then."""
_SERVER: Final = "The server"
_ANY: Final = "Any model"
_IN_PATH: Final = "path-"

Paths = dict[str, dict[str, Any]]


class OpenApiDocument:
    """The document of one API server, made again when what is served has changed."""

    def __init__(
        self, routes: Sequence[Route], status: Status, settings: ServeSettings, asks_keys: bool = False
    ) -> None:
        self._routes = routes
        self._status = status
        self._settings = settings
        self._asks_keys = asks_keys
        self._fixed = _fixed_paths(routes, asks_keys)
        self._parts: dict[str, _Part] = {}
        self._seen: tuple[object, ...] = ()
        self._body = b""
        self._making = asyncio.Lock()

    async def body(self) -> bytes:
        """The document as it is now."""
        async with self._making:
            models = self._status.models()
            seen = (models, default_model(self._status, self._settings))
            if seen != self._seen:
                self._body = await self._made(models, seen[1])
                self._seen = seen
        return self._body

    async def _made(self, models: Mapping[str, ServedModel], default: str | None) -> bytes:
        parts: dict[str, _Part] = {}
        left, skipped = _MOST_VERSIONS, []
        for name, model in sorted(models.items()):
            if len(model.versions) > left or not _is_described(model):
                skipped.append(name)
                continue
            left -= len(model.versions)
            known = self._parts.get(name)
            if known is not None and known.holds_for(model, name == default):
                parts[name] = known
            else:
                parts[name] = _Part(model, name == default, self._routes, self._asks_keys)
                await asyncio.sleep(0)  # requests first
        self._parts = parts
        return _document(self._fixed, parts.values(), skipped, models, self._asks_keys)


class _Part:
    """What is said of one model."""

    def __init__(
        self, model: ServedModel, is_default: bool, routes: Iterable[Route], asks_keys: bool
    ) -> None:
        self._of = (_described(model), is_default)
        self.paths = {
            path: orjson.Fragment(orjson.dumps(methods))
            for path, methods in _model_paths(model, is_default, routes, asks_keys).items()
        }
        version = model.versions[model.default_version]
        self.tag = {"name": model.name, "description": _tag_text(model, version)}

    def holds_for(self, model: ServedModel, is_default: bool) -> bool:
        """Whether it says the same of this one."""
        return self._of == (_described(model), is_default)


def _described(model: ServedModel) -> object:
    """All of a model that the document hangs on: not whether it is ready."""
    versions = tuple(
        (name, version.signature, version.manifest.get("image"), version.manifest.get("labels"))
        for name, version in model.versions.items()
    )
    return (model.name, model.default_version, versions)


def _is_described(model: ServedModel) -> bool:
    tensors = (len(one.signature.inputs) + len(one.signature.outputs) for one in model.versions.values())
    return max(tensors) <= _MOST_TENSORS


def _tag_text(model: ServedModel, version: ServedVersion) -> str:
    inputs, outputs = (
        ", ".join(map(str, specs)) for specs in (version.signature.inputs, version.signature.outputs)
    )
    return f"Version {version.version} of {', '.join(model.versions)}: {inputs} -> {outputs}"


def _document(
    fixed: Paths,
    parts: Iterable[_Part],
    skipped: Sequence[str],
    models: Mapping[str, ServedModel],
    asks_keys: bool,
) -> bytes:
    parts = list(parts)
    text = (
        "The calls of this server. Those of each model that is loaded now are described with its names and shapes "
        "under its own name, and those of any model as they hold for all; the document changes when the models do."
    )
    if skipped:
        text += f" {len(skipped)} more models are served that it has no room for: GET /info tells their signatures."
    tags = [
        {"name": _SERVER, "description": "Health, metrics and pages"},
        {"name": _ANY, "description": "The calls of models as they are for every one"},
        *(part.tag for part in parts),
    ]
    paths: dict[str, Any] = dict(fixed)
    for part in parts:
        paths.update(part.paths)
    return orjson.dumps(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "foldserve",
                "version": distribution_version("foldserve"),
                "description": text,
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "tags": tags,
            **({"security": USUAL} if asks_keys else {}),
            "paths": paths,
            "components": {
                **COMPONENTS,
                "parameters": {**COMPONENTS["parameters"], **_path_parameters(models)},
                "schemas": {**predict.SCHEMAS, **oip.SCHEMAS},
                **({"securitySchemes": SCHEMES} if asks_keys else {}),
            },
        }
    )


def _fixed_paths(routes: Iterable[Route], asks_keys: bool) -> Paths:
    """What is said whatever is served: every route but those of a default model, which need not be there."""
    paths: Paths = {}
    for route in routes:
        if route.of_model is None or "{model}" in route.path:
            tag = _ANY if "{model}" in route.path else _SERVER
            methods = paths.setdefault(route.path, {})
            methods[route.method.lower()] = _operation(route, route.operation, tag, asks_keys)
    return paths


def _model_paths(model: ServedModel, is_default: bool, routes: Iterable[Route], asks_keys: bool) -> Paths:
    paths: Paths = {}
    for route in routes:
        if route.of_model is None or ("{model}" not in route.path and not is_default):
            continue
        versions = [model.versions[model.default_version]]
        if "{version}" in route.path:
            versions = [*model.versions.values()] if len(model.versions) > 1 else []
        for version in versions:
            path = route.path.replace("{model}", model.name).replace("{version}", version.version)
            said = _operation(route, route.of_model(model, version), model.name, asks_keys, path)
            paths.setdefault(path, {})[route.method.lower()] = said
    return paths


def _path_parameters(models: Mapping[str, ServedModel]) -> dict[str, Any]:
    """What stands in braces in a path."""
    versions = {name for model in models.values() for name in model.versions}
    few = 0 < len(models) <= _MOST_VERSIONS and len(versions) <= _MOST_VERSIONS
    version = {"enum": sorted(versions, key=int)} if few else VERSION
    schemas: dict[str, Any] = {
        "model": {"enum": sorted(models)} if few else {"type": "string"},
        "version": version,
        "versions": {"anyOf": [version, {"const": torchserve.ALL}]},
        "file": {"enum": [*page_files()]},
        "name": regions.NAME,
    }
    return {
        f"{_IN_PATH}{name}": {"name": name, "in": "path", "required": True, "schema": schema}
        for name, schema in schemas.items()
    }


def _operation(
    route: Route, said: Mapping[str, Any], tag: str, asks_keys: bool, path: str = ""
) -> dict[str, Any]:
    in_path = [
        {"$ref": f"#/components/parameters/{_IN_PATH}{name}"}
        for name in re.findall(r"\{(\w+)\}", path or route.path)
    ]
    return {
        "tags": [tag],
        "summary": route.summary,
        **(secured(route, said) if asks_keys else said),
        "parameters": [*in_path, *said["parameters"]],
    }
