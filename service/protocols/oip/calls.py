"""The calls of /v2: health, metadata, configuration, statistics, the repository's index, inference.

Every response that is an error is {"error", "code"}; health answers both by its status, as Triton's clients read it,
and by its body, as KServe's do.
"""

import re
from dataclasses import dataclass
from typing import Final

import orjson

from foldserve.service.codecs.compression import encoding_of
from foldserve.service.engine.codec_process import LARGE_JSON_BYTES
from foldserve.service.errors import BadJson, BadRequest
from foldserve.service.inference.context import RequestContext, content_length
from foldserve.service.inference.partial_body import UNKNOWN
from foldserve.service.inference.plan import RequestHead, Target
from foldserve.service.inference.response import Response, json_response
from foldserve.service.protocols.heads import make_head
from foldserve.service.protocols.lookup import Plans, check_ready
from foldserve.service.protocols.oip.fast import JSON_LENGTH
from foldserve.service.protocols.oip.infer import OIP_BINARY, OIP_JSON
from foldserve.service.protocols.oip.information import Information
from foldserve.service.protocols.openapi import oip as described
from foldserve.service.protocols.routes import Route

INFER_PATHS: Final = ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer")
_LENGTH: Final = re.compile(r"\d{1,15}", re.ASCII)


@dataclass(frozen=True)
class OipCalls:
    """The calls of one API server."""

    information: Information
    plans: Plans

    def routes(self) -> tuple[Route, ...]:
        """Every call; inference by INFER_PATHS."""
        of_model = (
            ("", "Metadata", self._metadata, described.METADATA),
            ("/ready", "Whether it is ready", self._model_ready, described.MODEL_READY),
            ("/config", "Configuration, as Triton has it", self._config, described.CONFIG),
            ("/stats", "Cumulative statistics", self._statistics, described.STATISTICS),
        )
        of_server = (
            ("/v2", "Server metadata", self._server, described.SERVER),
            ("/v2/", "Server metadata", self._server, described.SERVER),
            ("/v2/health/live", "The process answers", self._live, described.LIVE),
            ("/v2/health/ready", "Ready to serve", self._ready, described.READY),
            ("/v2/models", "The models' names", self._models, described.MODELS),
            (
                "/v2/models/stats",
                "Cumulative statistics of every model",
                self._statistics,
                described.STATISTICS,
            ),
        )
        infer = zip(INFER_PATHS, ("a model", "one version of a model"), strict=True)
        return (
            *(Route("GET", path, what, handler, operation=said) for path, what, handler, said in of_server),
            Route(
                "POST",
                "/v2/repository/index",
                "Every version and its state",
                self._index,
                reads_body=True,
                operation=described.INDEX,
            ),
            *(
                Route(
                    "GET",
                    f"/v2/models/{{model}}{version}{path}",
                    f"{what} of a {of}",
                    handler,
                    operation=said,
                )
                for version, of in (("", "model"), ("/versions/{version}", "version of a model"))
                for path, what, handler, said in of_model
            ),
            *(
                Route(
                    "POST",
                    path,
                    f"Run {what} (Open Inference Protocol)",
                    head=self.head,
                    operation=described.INFER_ANY,
                    of_model=described.infer_of,
                )
                for path, what in infer
            ),
        )

    def head(
        self, context: RequestContext, target: Target, model: str, version: str | None = None
    ) -> RequestHead:
        """What an inference request asks for; what is learned of it is noted in its context. Raises: ServiceError."""
        context.protocol = OIP_JSON.name
        found, chosen = self.information.find(model, version)
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

    async def _server(self, context: RequestContext) -> Response:
        return json_response(self.information.server())

    async def _live(self, context: RequestContext) -> Response:
        return json_response({"live": True})

    async def _ready(self, context: RequestContext) -> Response:
        check_ready(self.information.status)
        return json_response({"live": True, "ready": True})

    async def _models(self, context: RequestContext) -> Response:
        return json_response({"models": sorted(self.information.status.models())})

    async def _model_ready(self, context: RequestContext, model: str, version: str | None = None) -> Response:
        return json_response({"name": self.information.check_model_ready(model, version), "ready": True})

    async def _metadata(self, context: RequestContext, model: str, version: str | None = None) -> Response:
        return json_response(self.information.metadata(model, version))

    async def _config(self, context: RequestContext, model: str, version: str | None = None) -> Response:
        return json_response(self.information.config(model, version))

    async def _statistics(
        self, context: RequestContext, model: str | None = None, version: str | None = None
    ) -> Response:
        return json_response(await self.information.statistics(model, version))

    async def _index(self, context: RequestContext, body: bytes) -> Response:
        return json_response(self.information.index(_index_body(body)))


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
