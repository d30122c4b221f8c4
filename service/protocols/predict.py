"""POST /predict: JSON, raw bytes or a NumPy file in, the same out; and what the head of such a request asks for.

Whatever the head settles (model, version, types) is refused here, before a byte of the body is read.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from foldserve.service.artifact.signature import Signature
from foldserve.service.codecs import (
    BodyType,
    TensorHeaders,
    answer_type,
    body_type,
    check_kind,
    decode,
    encode,
    lay_out,
    pick_outputs,
)
from foldserve.service.codecs.encoded import Encoded, LaidOut
from foldserve.service.codecs.json_fast import FastJsonCodec
from foldserve.service.codecs.protocol import Options, Served
from foldserve.service.engine.codec_process import LARGE_COPY_BYTES, LARGE_JSON_BYTES
from foldserve.service.engine.served import ServedModel, ServedVersion, Status
from foldserve.service.errors import (
    BadRequest,
    NotReady,
    ServiceError,
    UnknownModel,
    UnknownVersion,
    UnsupportedMediaType,
)
from foldserve.service.inference.body_budget import BodyTooLarge
from foldserve.service.inference.context import RequestContext, allowed_s, content_length
from foldserve.service.inference.plan import RequestHead, RequestPlan, Target
from foldserve.service.inference.response import error_body

_NAMES_SHOWN = 20


class PredictProtocol:
    """Implements InferenceProtocol: bodies of one type, which is also that of their answers unless Accept says
    otherwise."""

    def __init__(self, kind: BodyType) -> None:
        self.kind = kind
        self.name = kind.name.lower()
        self.media_type = kind.value
        self.large_bytes = LARGE_JSON_BYTES if kind is BodyType.JSON else LARGE_COPY_BYTES
        self.raw = kind is BodyType.RAW

    def parse(
        self, body: bytes | bytearray | memoryview, signature: Signature, options: Options
    ) -> dict[str, np.ndarray]:
        """See InferenceProtocol. options: the X-Tensor-* headers."""
        return decode(self.kind, body, signature, TensorHeaders(*options) if options else None)

    def render(self, served: Served, outputs: Mapping[str, np.ndarray]) -> Encoded:
        """See InferenceProtocol."""
        return encode(self.kind, served.model, served.version, outputs, served.signature)

    def lay_out(self, served: Served, outputs: Mapping[str, np.ndarray]) -> LaidOut | None:
        """See InferenceProtocol."""
        return None if self.kind is BodyType.JSON else lay_out(self.kind, outputs, served.signature)

    def render_error(self, error: ServiceError) -> Encoded:
        """See InferenceProtocol."""
        return error_body(error)

    def fast_codec(self, served: Served) -> FastJsonCodec | None:
        """See InferenceProtocol."""
        return FastJsonCodec.of(*served) if self.kind is BodyType.JSON else None


PREDICT: Final = {kind: PredictProtocol(kind) for kind in BodyType}

Plans = Mapping[tuple[str, str], Mapping[BodyType, RequestPlan]]
"""By model and version, and by the type of the body: what becomes of a request that asks for nothing special."""


@dataclass(frozen=True)
class PredictCalls:
    """Reads the heads of calls of /predict. default_model: of those that name none."""

    status: Status
    plans: Plans
    default_model: str | None

    def head(
        self, context: RequestContext, target: Target, model: str | None = None, version: str | None = None
    ) -> RequestHead:
        """What a call asks for; what is learned of it is noted in its context.

        Args:
            model, version: from the path; None when it does not name them.
        Raises: ServiceError.
        """
        query = context.query_values(("version", "output"))
        served = find_model(self.status, model, self.default_model)
        context.model = served.name
        chosen = find_version(self.status, served, _one_version(version, query.get("version")))
        context.version = chosen.version
        headers = context.headers
        own = body_type(headers.get("content-type"))
        context.protocol = PREDICT[own].name
        _refuse_encoding(headers.get("content-encoding"))
        check_kind(own, chosen.signature)
        names = pick_outputs(chosen.signature, query.get("output"))
        kind = answer_type(headers.get("accept"), own, names)
        timeout_ms = headers.get("x-timeout-ms")
        if timeout_ms is not None:
            allowed_s(timeout_ms, None)  # raises for an empty one too
        plan = self.plans[served.name, chosen.version][own]
        length = content_length(headers.get("content-length"))
        if length > plan.limit.nbytes:
            raise BodyTooLarge.than(plan.limit.nbytes, plan.limit.setting, length)
        options = context.tensor_headers()
        outputs = names if len(names) < len(chosen.signature.outputs) else ()
        if options:
            plan = RequestPlan(
                plan.queue, plan.reads, PREDICT[kind], plan.counter, plan.limit, outputs, options
            )
        elif outputs or kind is not own:
            plan = plan.answering(PREDICT[kind], outputs)
        return RequestHead(
            target, plan, length, context.request_id.encode(), (timeout_ms or "").encode("latin-1")
        )


def find_model(served: Status, name: str | None, default: str | None) -> ServedModel:
    """The model of that name, or the default: the one set, else the only one. Raises UnknownModel, NotReady."""
    models, broken = served.models(), served.broken()
    if name is None:
        name = default
    if name is None:
        if len(models) == 1 and only_model(models, broken):
            return next(iter(models.values()))
        raise UnknownModel(
            f"/predict names no model and not just one is served ({_names(models)}); POST "
            "/predict/<model>, or start the server with --default-model"
        )
    try:
        return models[name]
    except KeyError:
        if name in broken:
            raise _cannot_be_served(f"model {name!r}") from None
        raise UnknownModel(f"model {name[:100]!r} is not served; expected one of: {_names(models)}") from None


def find_version(served: Status, model: ServedModel, version: str | None) -> ServedVersion:
    """The model's version of that name, or its default one. Raises UnknownVersion, NotReady."""
    try:
        return model.versions[model.default_version if version is None else version]
    except KeyError:
        if f"{model.name}/{version}" in served.broken():
            raise _cannot_be_served(f"version {version} of model {model.name!r}") from None
        raise UnknownVersion(
            f"model {model.name!r} has no version {str(version)[:100]!r}; expected one of: "
            f"{_names(model.versions)}"
        ) from None


def only_model(names: Iterable[str], broken: Iterable[str]) -> bool:
    """Whether no other model is to be served, not even a broken one, than the only one of these names."""
    return {name.partition("/")[0] for name in broken} <= set(names)


def _cannot_be_served(what: str) -> NotReady:
    return NotReady(f"{what} cannot be served; GET /info says why, and the operator of the server can fix it")


def _one_version(in_path: str | None, in_query: str | None) -> str | None:
    if in_path is not None and in_query is not None and in_path != in_query:
        raise BadRequest(
            f"the path asks for version {in_path!r} and the query for {in_query!r}; name one of them"
        )
    return in_query if in_path is None else in_path


def _refuse_encoding(content_encoding: str | None) -> None:
    if content_encoding is not None and content_encoding.strip().lower() not in ("", "identity"):
        raise UnsupportedMediaType(
            f"Content-Encoding {content_encoding[:50]!r} is not supported; send the body uncompressed"
        )


def _names(named: object) -> str:
    names = sorted(named)  # type: ignore[call-overload]
    shown = ", ".join(names[:_NAMES_SHOWN])
    return f"{shown} and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else shown or "none"
