"""POST /v1/models/{model}:predict: the protocol of TensorFlow Serving and KServe v1, rows or columns of JSON.

    {"instances": [row, ...]}           one value a row, or one object {input: value} a row
    {"inputs": values}                  columns: the values of the only input, or {input: values}

The answer to rows is {"predictions": [row, ...]}, one value or one object {output: value} a row; to columns it is
{"outputs": values}, those of the only output, or {output: values}. Source: tensorflow/serving, api_rest.md.

A row, or the value of an input in a row, may be a picture: {"b64": "..."}, where the model takes pictures.

Also what SageMaker sends to POST /invocations, where a bare list is taken for rows.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import numpy as np
import orjson

from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.codecs import json_codec
from foldserve.service.codecs.encoded import Encoded, LaidOut
from foldserve.service.codecs.fast.codec import FastCodec
from foldserve.service.codecs.fast.json_rows import JsonRowsCodec
from foldserve.service.codecs.json_diagnostics import kind_of, why_not_json
from foldserve.service.codecs.protocol import Options, ParsedRequest, Served
from foldserve.service.engine.codec_process import LARGE_JSON_BYTES
from foldserve.service.engine.codec_process.rendering_time import SMALL_BYTES, json_ns, objects_ns
from foldserve.service.engine.served import Status
from foldserve.service.errors import BadJson, BadTensor, ServiceError
from foldserve.service.inference.context import RequestContext
from foldserve.service.inference.plan import RequestHead, RequestPlan, Target
from foldserve.service.inference.response import JSON, Response, error_body, json_response
from foldserve.service.protocols.heads import make_head
from foldserve.service.protocols.lookup import Plans, check_ready, find_model, find_version
from foldserve.service.protocols.openapi import kserve_v1 as described
from foldserve.service.protocols.pictures import B64, decode_rows, has_pictures, takes_none
from foldserve.service.protocols.routes import Route

_EXPECTED: Final = 'expected {"instances": [row, ...]} or {"inputs": values}'
_PASSED_OVER: Final = frozenset(("signature_name", "parameters"))
"""Keys that clients send and that nothing depends on here."""
_ROWS, _COLUMNS = "instances", "inputs"
_TENSOR_AS_BYTES: Final = "POST the tensor to /predict as application/octet-stream or application/x-npy"
_AS_NUMBERS: Final = "To get the numbers as they are, POST to /predict with 'Accept: application/x-npy'"


class KserveV1Protocol:
    """Implements InferenceProtocol: bodies that may hold pictures, or cannot."""

    name = "v1"
    media_type = JSON
    is_json = True
    raw = False
    shorter = "send fewer rows; this protocol has JSON alone, and /predict takes raw bytes (application/octet-stream)"
    at_once_bytes = SMALL_BYTES

    def __init__(self, key: str, large_bytes: int) -> None:
        self.key = key
        self.large_bytes = large_bytes

    def parse(self, body: bytes | bytearray | memoryview, served: Served, options: Options) -> ParsedRequest:
        """See InferenceProtocol."""
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise BadJson(why_not_json(bytes(body), error, _EXPECTED, _TENSOR_AS_BYTES)) from None
        form, given = _form(document)
        signature = served.signature
        values = _columns(given, served) if form == _ROWS else _named(given, signature)
        signature.check_names(values)
        arrays = {spec.name: _array(values[spec.name], spec, served) for spec in signature.inputs}
        return ParsedRequest(arrays, reply=form)

    def render(self, served: Served, outputs: Mapping[str, np.ndarray], reply: Any) -> Encoded:
        """See InferenceProtocol."""
        arrays = {name: json_codec.encodable(name, array, _AS_NUMBERS) for name, array in outputs.items()}
        only = next(iter(arrays.values())) if len(arrays) == 1 else None
        answer: dict[str, Any]
        if reply == _COLUMNS:
            answer = {"outputs": arrays if only is None else only}
        elif only is not None:
            answer = {"predictions": only}
        else:
            rows = zip(*(array.tolist() for array in arrays.values()), strict=True)
            answer = {"predictions": [dict(zip(arrays, row, strict=True)) for row in rows]}
        return Encoded(JSON, orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY))

    def render_ns(self, served: Served, outputs: Mapping[str, np.ndarray], reply: Any) -> int:
        """See InferenceProtocol."""
        one_by_one = reply == _ROWS and len(outputs) > 1
        return objects_ns(outputs.values()) if one_by_one else json_ns(outputs.values())

    def lay_out(self, served: Served, outputs: Mapping[str, np.ndarray], reply: Any) -> LaidOut | None:
        """See InferenceProtocol."""
        return None

    def render_error(self, error: ServiceError) -> Encoded:
        """See InferenceProtocol."""
        return error_body(error)

    def fast_codec(self, served: Served) -> FastCodec | None:
        """See InferenceProtocol."""
        return JsonRowsCodec.of(served.signature, _ROWS, (b'{"predictions":', b"}"), reply=_ROWS)


KSERVE_V1: Final = KserveV1Protocol("v1", LARGE_JSON_BYTES)
KSERVE_V1_PICTURES: Final = KserveV1Protocol("v1_pictures", 0)
"""To models that take pictures: no event loop is to stand still while one is decoded, of however few bytes."""

_SUMMARIES: Final = (
    "Run a model (KServe v1)",
    "Run one version of a model (KServe v1)",
    "Run the default model (SageMaker)",
)
V1_PATHS: Final = (
    "/v1/models/{model}:predict",
    "/v1/models/{model}/versions/{version}:predict",
    "/invocations",
)


def plan_of(plans: Mapping[str, RequestPlan]) -> RequestPlan:
    """What becomes of requests to a model version. plans: by the keys of their bodies' protocols."""
    plan = plans[KSERVE_V1.key]
    return plan if plan.served.image is None else plans[KSERVE_V1_PICTURES.key]


@dataclass(frozen=True)
class KserveV1Calls:
    """The calls of /v1, and those of SageMaker. default_model: of /invocations, which names none."""

    status: Status
    plans: Plans
    default_model: str | None

    def routes(self) -> tuple[Route, ...]:
        """Every call."""
        of_model, of_version = "/v1/models/{model}", "/v1/models/{model}/versions/{version}"
        run = zip(V1_PATHS, _SUMMARIES, strict=True)
        states = (
            (of_model, "Whether a model is ready"),
            (of_version, "Whether a version of a model is ready"),
        )
        return (
            Route("GET", "/", "The process answers (KServe v1)", self._alive, operation=described.ALIVE),
            Route("GET", "/v1/models", "The models' names", self._models, operation=described.MODELS),
            *(Route("GET", path, what, self._state, operation=described.STATE) for path, what in states),
            *(
                Route(
                    "POST",
                    path,
                    what,
                    head=self.head,
                    operation=described.PREDICT_ANY,
                    of_model=described.predict_of,
                )
                for path, what in run
            ),
            Route("GET", "/ping", "Ready to serve (SageMaker)", self._ping, operation=described.PING),
        )

    def head(
        self, context: RequestContext, target: Target, model: str | None = None, version: str | None = None
    ) -> RequestHead:
        """What a call asks for; what is learned of it is noted in its context. Raises: ServiceError."""
        context.protocol = KSERVE_V1.name
        found = find_model(self.status, model, self.default_model)
        chosen = find_version(self.status, found, version)
        context.model, context.version = found.name, chosen.version
        return make_head(context, target, plan_of(self.plans[found.name, chosen.version]))

    async def _models(self, context: RequestContext) -> Response:
        return json_response({"models": sorted(self.status.models())})

    async def _state(self, context: RequestContext, model: str, version: str | None = None) -> Response:
        found = find_model(self.status, model, None)
        asked = found.versions.values() if version is None else (find_version(self.status, found, version),)
        states = [
            {
                "version": one.version,
                "state": "AVAILABLE" if one.ready else "LOADING",
                "status": {"error_code": "OK", "error_message": ""},
            }
            for one in asked
        ]
        ready = all(one.ready for one in asked)
        body = {"name": found.name, "ready": ready, "model_version_status": states}
        return json_response(body, status=200 if ready else 503)

    async def _alive(self, context: RequestContext) -> Response:
        return json_response({"status": "alive"})

    async def _ping(self, context: RequestContext) -> Response:
        check_ready(self.status)
        return json_response({"status": "Healthy"})


def _form(document: Any) -> tuple[str, Any]:
    """Whether rows or columns are given, and they. Raises: BadJson."""
    if isinstance(document, list):
        return _ROWS, document
    if not isinstance(document, dict):
        raise BadJson(f"the body is {kind_of(document)}; {_EXPECTED}")
    forms = [key for key in (_ROWS, _COLUMNS) if key in document]
    others = [key for key in document if key not in forms and key not in _PASSED_OVER]
    if len(forms) != 1 or others:
        found = _shown(document) or "none"
        raise BadJson(f"the body has the keys {found}; {_EXPECTED}, and nothing else")
    return forms[0], document[forms[0]]


def _array(values: Any, spec: TensorSpec, served: Served) -> np.ndarray:
    """One input. Raises: BadPicture, BadTensor."""
    if served.image is not None and served.image.input == spec.name and has_pictures(values):
        return decode_rows(values, served.image)
    return json_codec.to_array(values, spec)


def _columns(rows: Any, served: Served) -> dict[str, Any]:
    """The values of each input, of rows. Raises: BadJson, BadTensor."""
    signature = served.signature
    if not isinstance(rows, list):
        raise BadJson(f'"{_ROWS}" is {kind_of(rows)}; expected a list of rows')
    if not signature.counts_rows:
        raise BadTensor(
            f'the model counts no rows; send its tensors as they are, as {{"{_COLUMNS}": values}}'
        )
    named = [isinstance(row, dict) for row in rows]
    if not any(named) or (served.image is not None and has_pictures(rows)):
        return _named(rows, signature)
    if has_pictures(rows) and B64 not in signature.inputs_by_name:
        raise BadTensor(takes_none(served.model, f'a row is {{"{B64}": ...}}'))
    columns: dict[str, Any] = {name: [] for name in rows[named.index(True)]}
    for at, row in enumerate(rows):
        if not isinstance(row, dict) or row.keys() != columns.keys():
            raise BadJson(
                f'"{_ROWS}"[{at}] has not the inputs {_shown(columns)} that others have; give every row the same'
            )
        for name, value in row.items():
            columns[name].append(value)
    return columns


def _named(values: Any, signature: Signature) -> dict[str, Any]:
    """Values by input: as they are, or those of the only input. Raises: BadTensor."""
    if isinstance(values, dict):
        return values
    if len(signature.inputs) > 1:
        names = ", ".join(signature.inputs_by_name)
        raise BadTensor(
            f"the model has {len(signature.inputs)} inputs ({names}) and the values name none; name them, row by row "
            f'or as {{"{_COLUMNS}": {{input: values}}}}'
        )
    return {signature.inputs[0].name: values}


def _shown(keys: Iterable[str]) -> str:
    """Some of a client's keys, for an error's text, whose length it must not choose."""
    return ", ".join(repr(key[:50]) for key in islice(keys, 10))
