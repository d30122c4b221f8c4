"""POST /predict: JSON, raw bytes, a NumPy file or a picture in; and what the head of such a request asks for.

Whatever the head settles (model, version, types) is refused here, before a byte of the body is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson

from foldserve.service.codecs import (
    BodyType,
    TensorHeaders,
    answer_type,
    body_type,
    check_kind,
    decode,
    encode,
    json_codec,
    lay_out,
    pick_outputs,
)
from foldserve.service.codecs.encoded import Encoded, LaidOut
from foldserve.service.codecs.fast.codec import FastCodec
from foldserve.service.codecs.fast.json_rows import JsonRowsCodec
from foldserve.service.codecs.fast.tensor_body import TensorBodyCodec
from foldserve.service.codecs.protocol import Options, ParsedRequest, Served
from foldserve.service.engine.codec_process import LARGE_COPY_BYTES, LARGE_JSON_BYTES
from foldserve.service.engine.codec_process.rendering_time import SMALL_BYTES, copy_ns, json_ns, largest_ns
from foldserve.service.engine.served import Status
from foldserve.service.errors import BadRequest, NotAcceptable, ServiceError
from foldserve.service.inference.context import RequestContext
from foldserve.service.inference.plan import RequestHead, Target
from foldserve.service.inference.response import error_body
from foldserve.service.protocols.heads import make_head
from foldserve.service.protocols.lookup import Plans, find_model, find_version
from foldserve.service.protocols.openapi import predict as described
from foldserve.service.protocols.pictures import PICTURE_TYPES, PictureProtocol, is_picture, picture_options
from foldserve.service.protocols.routes import Route
from foldserve.service.protocols.top import check_count, read_top, scores_output, top_of

_NOT_AS_JSON: Final = (
    "send fewer rows, or raw bytes (application/octet-stream, application/x-npy) instead of JSON"
)


class PredictProtocol:
    """Implements InferenceProtocol: bodies of one type, which is also that of their answers unless Accept says
    otherwise."""

    def __init__(self, kind: BodyType) -> None:
        self.kind = kind
        self.key = self.name = kind.name.lower()
        self.media_type = kind.value
        self.is_json = kind is BodyType.JSON
        self.large_bytes = LARGE_JSON_BYTES if self.is_json else LARGE_COPY_BYTES
        self.raw = kind is BodyType.RAW
        self.shorter = _NOT_AS_JSON if self.is_json else "send fewer rows"
        self.at_once_bytes = SMALL_BYTES if self.is_json else LARGE_COPY_BYTES

    def parse(self, body: bytes | bytearray | memoryview, served: Served, options: Options) -> ParsedRequest:
        """See InferenceProtocol. options: the X-Tensor-* headers, and how many of the largest scores are asked for."""
        signature = served.signature
        if not options:
            return ParsedRequest(decode(self.kind, body, signature))
        *headers, top = options
        inputs = decode(self.kind, body, signature, TensorHeaders(*headers))
        if top is None:
            return ParsedRequest(inputs)
        if signature.counts_rows:
            check_count(signature.check_inputs(inputs), int(top))
        return ParsedRequest(inputs, reply=int(top))

    def render(self, served: Served, outputs: Mapping[str, np.ndarray], reply: Any) -> Encoded:
        """See InferenceProtocol. reply: how many of the largest scores are asked for."""
        if reply is not None:
            top = {"top": top_of(served, outputs, reply)}
            return Encoded(self.media_type, json_codec.encode(served.model, served.version, outputs, top))
        return encode(self.kind, served.model, served.version, outputs, served.signature)

    def render_ns(self, served: Served, outputs: Mapping[str, np.ndarray], reply: Any) -> int:
        """See InferenceProtocol."""
        if not self.is_json:
            return copy_ns(outputs.values())
        top_ns = 0 if reply is None else largest_ns(outputs[scores_output(served, outputs)], reply)
        return top_ns + json_ns(outputs.values())

    def lay_out(self, served: Served, outputs: Mapping[str, np.ndarray], reply: Any) -> LaidOut | None:
        """See InferenceProtocol."""
        return None if self.kind is BodyType.JSON else lay_out(self.kind, outputs, served.signature)

    def render_error(self, error: ServiceError) -> Encoded:
        """See InferenceProtocol."""
        return error_body(error)

    def fast_codec(self, served: Served) -> FastCodec | None:
        """See InferenceProtocol."""
        signature = served.signature
        output = signature.outputs[0].name
        if self.kind is not BodyType.JSON:
            return TensorBodyCodec.of(signature, lambda array: lay_out(self.kind, {output: array}, signature))
        names = tuple(map(orjson.dumps, (served.model, served.version, output)))
        before = b'{"model":%b,"version":%b,"outputs":{%b:' % names
        return JsonRowsCodec.of(signature, "inputs", (before, b"}}"))


PREDICT: Final = {kind: PredictProtocol(kind) for kind in BodyType}
PICTURE: Final = PictureProtocol(PREDICT[BodyType.JSON])

PREDICT_PATHS: Final = ("/predict", "/predict/{model}", "/predict/{model}/versions/{version}")


@dataclass(frozen=True)
class PredictCalls:
    """The calls of /predict. default_model: of those that name none."""

    status: Status
    plans: Plans
    default_model: str | None

    def routes(self) -> tuple[Route, ...]:
        """Every call, by PREDICT_PATHS."""
        summaries = ("Run the default model", "Run a model's default version", "Run one version of a model")
        of_model = (described.ANY_MODEL, described.of_model)
        said = (of_model, of_model, (described.ANY_VERSION, described.of_version))
        return tuple(
            Route("POST", path, summary, head=self.head, operation=operation, of_model=of_model)
            for path, summary, (operation, of_model) in zip(PREDICT_PATHS, summaries, said, strict=True)
        )

    def head(
        self, context: RequestContext, target: Target, model: str | None = None, version: str | None = None
    ) -> RequestHead:
        """What a call asks for; what is learned of it is noted in its context.

        Args:
            model, version: from the path; None when it does not name them.
        Raises: ServiceError.
        """
        query = context.query_values(("version", "output", "top"))
        served = find_model(self.status, model, self.default_model)
        context.model = served.name
        chosen = find_version(self.status, served, _one_version(version, query.get("version")))
        context.version = chosen.version
        headers = context.headers
        content_type = headers.get("content-type")
        plans = self.plans[served.name, chosen.version]
        said: Options
        if is_picture(content_type):
            own, plan = BodyType.JSON, plans[PICTURE.key]
            context.protocol = PICTURE.name
            said = picture_options(content_type or "", plan.served)
        else:
            own = body_type(content_type, () if plans[PICTURE.key].served.image is None else PICTURE_TYPES)
            plan = plans[PREDICT[own].key]
            context.protocol = PREDICT[own].name
            check_kind(own, chosen.signature)
            said = context.tensor_headers()
        names = pick_outputs(chosen.signature, query.get("output"))
        kind = answer_type(headers.get("accept"), own, names)
        outputs = names if len(names) < len(chosen.signature.outputs) else ()
        if outputs or kind is not own:
            plan = plan.answering(PREDICT[kind], outputs)
        top = _top(query.get("top"), plan.served, names, kind)
        if said or top is not None:
            said = (*(said or _NO_TENSOR_HEADERS), top)
        return make_head(context, target, plan, said)


_NO_TENSOR_HEADERS: Final = (None, None, None)


def _top(value: str | None, served: Served, names: tuple[str, ...], kind: BodyType) -> str | None:
    """How many of the largest scores are asked for, if they can be told. Raises: BadRequest, NotAcceptable."""
    if value is None:
        return None
    top = read_top(value)
    scores_output(served, names)
    if kind is not BodyType.JSON:
        raise NotAcceptable(
            f"top asks for labels, which {kind.value} cannot carry; send 'Accept: application/json', or leave top out"
        )
    return str(top)


def _one_version(in_path: str | None, in_query: str | None) -> str | None:
    if in_path is not None and in_query is not None and in_path != in_query:
        raise BadRequest(
            f"the path asks for version {in_path!r} and the query for {in_query!r}; name one of them"
        )
    return in_query if in_path is None else in_path
