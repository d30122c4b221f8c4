"""The calls of /v2: health, metadata, configuration, statistics, the repository's index, inference.

Every response that is an error is {"error", "code"}; health answers both by its status, as Triton's clients read it,
and by its body, as KServe's do.
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.metadata import version as distribution_version
from typing import Any, Final

import orjson

from foldserve.service.codecs.compression import encoding_of
from foldserve.service.engine.codec_process import LARGE_JSON_BYTES
from foldserve.service.engine.served import ServedModel, ServedVersion, Status
from foldserve.service.errors import BadJson, BadRequest, Draining, NotReady
from foldserve.service.inference.context import RequestContext, content_length
from foldserve.service.inference.partial_body import UNKNOWN
from foldserve.service.inference.plan import RequestHead, Target
from foldserve.service.inference.response import Response, json_response
from foldserve.service.protocols.heads import make_head
from foldserve.service.protocols.lookup import Plans, check_ready, find_model, find_version
from foldserve.service.protocols.oip.documents import model_config, model_metadata
from foldserve.service.protocols.oip.fast import JSON_LENGTH
from foldserve.service.protocols.oip.infer import OIP_BINARY, OIP_JSON
from foldserve.service.protocols.oip.statistics import statistics
from foldserve.service.protocols.routes import Route

EXTENSIONS: Final = (
    "classification",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
)
"""Those of Triton's that are served, in its order."""
INFER_PATHS: Final = ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer")
_LENGTH: Final = re.compile(r"\d{1,15}", re.ASCII)

Exposition = Callable[[str], Awaitable[tuple[bytes, str]]]
"""Accept header -> body and content type of GET /metrics."""


@dataclass(frozen=True)
class OipCalls:
    """The calls of one API server."""

    status: Status
    plans: Plans
    exposition: Exposition

    def routes(self) -> tuple[Route, ...]:
        """Every call; inference by INFER_PATHS."""
        of_model = (
            ("", "Metadata", self._metadata),
            ("/ready", "Whether it is ready", self._model_ready),
            ("/config", "Configuration, as Triton has it", self._config),
            ("/stats", "Cumulative statistics", self._statistics),
        )
        return (
            Route("GET", "/v2", "Server metadata", self._server),
            Route("GET", "/v2/", "Server metadata", self._server),
            Route("GET", "/v2/health/live", "The process answers", self._live),
            Route("GET", "/v2/health/ready", "Ready to serve", self._ready),
            Route("GET", "/v2/models", "The models' names", self._models),
            Route("GET", "/v2/models/stats", "Cumulative statistics of every model", self._statistics),
            Route(
                "POST", "/v2/repository/index", "Every version and its state", self._index, reads_body=True
            ),
            *(
                Route("GET", f"/v2/models/{{model}}{version}{path}", f"{what} of a {of}", handler)
                for version, of in (("", "model"), ("/versions/{version}", "version of a model"))
                for path, what, handler in of_model
            ),
            *(
                Route("POST", path, f"Run {what} (Open Inference Protocol)", head=self.head)
                for path, what in zip(INFER_PATHS, ("a model", "one version of a model"), strict=True)
            ),
        )

    def head(
        self, context: RequestContext, target: Target, model: str, version: str | None = None
    ) -> RequestHead:
        """What an inference request asks for; what is learned of it is noted in its context. Raises: ServiceError."""
        context.protocol = OIP_JSON.name
        found, chosen = self._find(model, version)
        context.model, context.version = found.name, chosen.version
        given = context.headers.get(JSON_LENGTH.lower())
        plans = self.plans[found.name, chosen.version]
        if given is None:
            return make_head(context, target, plans[OIP_JSON.key])
        encoded = encoding_of(context.headers.get("content-encoding"))  # it counts what the body was before
        body_length = UNKNOWN if encoded else content_length(context.headers.get("content-length"))
        json_length = _json_length(given, body_length)
        protocol = OIP_BINARY if json_length <= LARGE_JSON_BYTES else OIP_JSON
        return make_head(context, target, plans[protocol.key], (str(json_length),))

    def _find(self, model: str, version: str | None) -> tuple[ServedModel, ServedVersion]:
        found = find_model(self.status, model, None)
        return found, find_version(self.status, found, version)

    async def _server(self, context: RequestContext) -> Response:
        return json_response(
            {"name": "foldserve", "version": distribution_version("foldserve"), "extensions": EXTENSIONS}
        )

    async def _live(self, context: RequestContext) -> Response:
        return json_response({"live": True})

    async def _ready(self, context: RequestContext) -> Response:
        check_ready(self.status)
        return json_response({"live": True, "ready": True})

    async def _models(self, context: RequestContext) -> Response:
        return json_response({"models": sorted(self.status.models())})

    async def _model_ready(self, context: RequestContext, model: str, version: str | None = None) -> Response:
        found, chosen = self._find(model, version)
        if self.status.draining():
            raise Draining("the server is shutting down; send requests to another one")
        if not chosen.ready:
            why = chosen.manifest.get("problem", "loading")
            raise NotReady(f"version {chosen.version} of model {found.name!r} is not ready: {why}")
        return json_response({"name": found.name, "ready": True})

    async def _metadata(self, context: RequestContext, model: str, version: str | None = None) -> Response:
        return json_response(model_metadata(*self._find(model, version)))

    async def _config(self, context: RequestContext, model: str, version: str | None = None) -> Response:
        found, chosen = self._find(model, version)
        return json_response(model_config(found, chosen, self.status.served_by(found.name, chosen.version)))

    async def _statistics(
        self, context: RequestContext, model: str | None = None, version: str | None = None
    ) -> Response:
        if model is None:
            asked = [
                (name, one)
                for name, served in sorted(self.status.models().items())
                for one in served.versions
            ]
        else:
            found = find_model(self.status, model, None)
            chosen = (
                found.versions if version is None else (find_version(self.status, found, version).version,)
            )
            asked = [(found.name, one) for one in chosen]
        text, _ = await self.exposition("text/plain")
        return json_response({"model_stats": statistics(text.decode(), asked)})

    async def _index(self, context: RequestContext, body: bytes) -> Response:
        ready_only = _index_body(body)
        listed: list[dict[str, Any]] = []
        for name, model in sorted(self.status.models().items()):
            for version in model.versions.values():
                state = "READY" if version.ready else "LOADING"
                reason = "" if version.ready else str(version.manifest.get("problem", ""))
                listed.append({"name": name, "version": version.version, "state": state, "reason": reason})
        for broken, problem in sorted(self.status.broken().items()):
            name, _, number = broken.partition("/")
            of_version = {"version": number} if number else {}
            listed.append({"name": name, **of_version, "state": "UNAVAILABLE", "reason": problem})
        return json_response([one for one in listed if not ready_only or one["state"] == "READY"])


def _json_length(given: str, body_length: int) -> int:
    """The value of Inference-Header-Content-Length. body_length: negative when it is not known yet."""
    most = f" up to {body_length}, the length of the body" if body_length >= 0 else ""
    if not _LENGTH.fullmatch(given) or (body_length >= 0 and int(given) > body_length):
        raise BadRequest(
            f"{JSON_LENGTH} is {given[:50]!r}; expected a number of bytes{most}: send the length of the JSON part"
        )
    return int(given)


def _index_body(body: bytes) -> bool:
    """Whether only models that are ready are asked for."""
    if not body.strip():
        return False
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadJson(f'the body is not JSON ({error}); expected {{"ready": true}}, or nothing') from None
    ready = document.get("ready", False) if isinstance(document, dict) else None
    if not isinstance(ready, bool):
        raise BadJson('expected {"ready": true} or {"ready": false} as the body, or nothing')
    return ready
