"""POST or PUT /predictions/{model}: TorchServe's calls, for clients of a server that is no longer maintained.

A body is what TorchServe's default handlers take: a picture (as the body, as a field of a form, or as base64 in JSON),
a row or rows of numbers as JSON lists, alone, as {"data": ...} or {"body": ...}, or {"instances": [row, ...]}, as
KServe's wrapper of it has them. `curl -T cat.jpg` says no type: a picture is told by its first byte.

An answer is {label: probability} of the five most probable classes for a row where the model has labels (as
image_classifier: softmax of the scores), else the row; to one row itself, to rows a list. Source: pytorch/serve,
docs/inference_api.md, docs/management_api.md, ts/torch_handler/.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson

from foldserve.service.artifact.pictures import FORMATS, PictureInput, decode
from foldserve.service.codecs import json_codec
from foldserve.service.codecs.encoded import Encoded, LaidOut
from foldserve.service.codecs.fast.codec import FastCodec
from foldserve.service.codecs.json_diagnostics import kind_of, why_not_json
from foldserve.service.codecs.protocol import Options, ParsedRequest, Served
from foldserve.service.engine.codec_process import LARGE_JSON_BYTES
from foldserve.service.engine.codec_process.rendering_time import SMALL_BYTES, json_ns, largest_ns, objects_ns
from foldserve.service.engine.served import ServedModel, ServedVersion, Status
from foldserve.service.errors import BadJson, BadPicture, BadTensor, ServiceError
from foldserve.service.inference.context import RequestContext
from foldserve.service.inference.plan import RequestHead, Target
from foldserve.service.inference.response import JSON, Response, error_body, json_response
from foldserve.service.protocols.heads import make_head
from foldserve.service.protocols.kserve_v1 import KSERVE_V1
from foldserve.service.protocols.lookup import Plans, find_model, find_version
from foldserve.service.protocols.openapi import torchserve as described
from foldserve.service.protocols.pictures import (
    decode_body,
    decode_rows,
    has_pictures,
    is_picture,
    picture_options,
)
from foldserve.service.protocols.routes import Route
from foldserve.service.protocols.top import scores_outputs

CLASSES: Final = 5
"""Of an answer with labels: image_classifier's own."""
_ROW, _ROWS = "row", "rows"
_WRAPPERS: Final = ("data", "body")
_INSTANCES: Final = ("instances", "inputs")
_EXPECTED: Final = 'expected a list of numbers, {"data": ...} or {"instances": [row, ...]}'
_TENSOR_AS_BYTES: Final = "POST the tensor to /predict as application/octet-stream or application/x-npy"
_AS_NUMBERS: Final = "To get the numbers as they are, POST to /predict with 'Accept: application/x-npy'"


class TorchServeProtocol:
    """Implements InferenceProtocol: JSON alone, pictures alone, or either, which the body tells."""

    name = "torchserve"
    media_type = JSON
    raw = False
    shorter = "send fewer rows, or a smaller picture; /predict takes raw bytes (application/octet-stream)"
    at_once_bytes = SMALL_BYTES

    def __init__(self, key: str, *, is_json: bool, large_bytes: int) -> None:
        self.key = key
        self.is_json = is_json
        self.large_bytes = large_bytes

    def parse(self, body: bytes | bytearray | memoryview, served: Served, options: Options) -> ParsedRequest:
        """See InferenceProtocol. options: those of picture_options() for a body that says that it is a picture."""
        content, image = bytes(body), served.image
        if image is not None and (options or content.lstrip()[:1] not in (b"[", b"{", b'"')):
            row = decode_body(content, options[:2], image) if options else decode(content, image, FORMATS)
            return ParsedRequest({image.input: row[None]}, reply=_ROW)
        try:
            document = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise BadJson(why_not_json(content, error, _EXPECTED, _TENSOR_AS_BYTES)) from None
        if isinstance(document, dict):
            if any(key in document for key in _INSTANCES):
                return KSERVE_V1.parse(content, served, ())
            document = _unwrapped(document)
        return _values(document, served)

    def render(self, served: Served, outputs: Mapping[str, np.ndarray], reply: Any) -> Encoded:
        """See InferenceProtocol. reply: whether the answer is a row, rows, or KServe v1's."""
        scores = scores_outputs(served, outputs) if served.labels else []
        if len(scores) != 1 and reply in _INSTANCES:
            return KSERVE_V1.render(served, outputs, reply)
        arrays = {name: json_codec.encodable(name, array, _AS_NUMBERS) for name, array in outputs.items()}
        rows: Any
        if len(scores) == 1:
            rows = _most_probable(outputs[scores[0]], served.labels)
        elif len(arrays) == 1:
            (rows,) = arrays.values()
        elif served.signature.counts_rows:
            listed = (array.tolist() for array in arrays.values())
            rows = [dict(zip(arrays, row, strict=True)) for row in zip(*listed, strict=True)]
        else:
            rows = arrays
        answer = rows[0] if reply == _ROW else rows
        if reply in _INSTANCES:
            answer = {"predictions": rows}
        return Encoded(JSON, orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY))

    def render_ns(self, served: Served, outputs: Mapping[str, np.ndarray], reply: Any) -> int:
        """See InferenceProtocol."""
        if served.labels and len(scores := scores_outputs(served, outputs)) == 1:
            return largest_ns(outputs[scores[0]], CLASSES)
        return objects_ns(outputs.values()) if len(outputs) > 1 else json_ns(outputs.values())

    def lay_out(self, served: Served, outputs: Mapping[str, np.ndarray], reply: Any) -> LaidOut | None:
        """See InferenceProtocol."""
        return None

    def render_error(self, error: ServiceError) -> Encoded:
        """See InferenceProtocol."""
        return error_body(error)

    def fast_codec(self, served: Served) -> FastCodec | None:
        """See InferenceProtocol."""
        return None


TORCHSERVE: Final = TorchServeProtocol("torchserve", is_json=True, large_bytes=LARGE_JSON_BYTES)
"""To models that take no pictures."""
TORCHSERVE_ANY: Final = TorchServeProtocol("torchserve_any", is_json=True, large_bytes=0)
"""To those that do, of bodies that do not say what they are: no event loop is to stand still for a picture."""
TORCHSERVE_PICTURE: Final = TorchServeProtocol("torchserve_picture", is_json=False, large_bytes=0)
"""Of bodies that say that they are pictures."""


@dataclass(frozen=True)
class TorchServeCalls:
    """The calls of one API server; /ping is SageMaker's too (kserve_v1.py)."""

    status: Status
    plans: Plans

    def routes(self) -> tuple[Route, ...]:
        """Every call."""
        paths = (
            ("/predictions/{model}", "Run a model (TorchServe)"),
            ("/predictions/{model}/{version}", "Run one version of a model (TorchServe)"),
        )
        run = [
            Route(
                method,
                path,
                what,
                head=self.head,
                operation=described.PREDICT_ANY,
                of_model=of_model,
            )
            for path, what in paths
            for method, of_model in (("POST", described.predict_of), ("PUT", described.put_of))
        ]
        told = (
            ("/models", "The models (TorchServe)", self._models, described.MODELS),
            (
                "/models/{model}",
                "A model's default version (TorchServe)",
                self._described,
                described.DESCRIBED,
            ),
            (
                "/models/{model}/{versions}",
                "One version of a model, or all (TorchServe)",
                self._described,
                described.DESCRIBED,
            ),
        )
        return (*run, *(Route("GET", path, what, by, operation=said) for path, what, by, said in told))

    def head(
        self, context: RequestContext, target: Target, model: str, version: str | None = None
    ) -> RequestHead:
        """What a call asks for; what is learned of it is noted in its context. Raises: ServiceError."""
        context.protocol = TORCHSERVE.name
        found = find_model(self.status, model, None)
        chosen = find_version(self.status, found, version)
        context.model, context.version = found.name, chosen.version
        plans, content_type = self.plans[found.name, chosen.version], context.headers.get("content-type")
        plan = plans[TORCHSERVE.key]
        if is_picture(content_type):
            options = picture_options(content_type or "", plan.served)
            return make_head(context, target, plans[TORCHSERVE_PICTURE.key], options)
        return make_head(context, target, plan if plan.served.image is None else plans[TORCHSERVE_ANY.key])

    async def _models(self, context: RequestContext) -> Response:
        names = sorted(self.status.models())
        return json_response({"models": [{"modelName": name, "modelUrl": name} for name in names]})

    async def _described(self, context: RequestContext, model: str, versions: str | None = None) -> Response:
        found = find_model(self.status, model, None)
        if versions == described.ALL:
            asked = list(found.versions.values())
        else:
            asked = [find_version(self.status, found, versions)]
        return json_response([self._description(found, one) for one in asked])

    def _description(self, model: ServedModel, version: ServedVersion) -> dict[str, Any]:
        """What TorchServe tells of a version, as far as it is so here."""
        workers = [
            {
                "id": str(number),
                "status": "READY" if by.ready else "UNLOADING",
                "gpu": by.device.startswith("cuda"),
            }
            for number, by in enumerate(self.status.served_by(model.name, version.version))
        ]
        return {
            "modelName": model.name,
            "modelVersion": version.version,
            "modelUrl": model.name,
            "runtime": "python",
            "minWorkers": len(workers),
            "maxWorkers": len(workers),
            "batchSize": max(1, version.max_batch_size),
            "loadedAtStartup": version.ready,
            "workers": workers,
        }


def _unwrapped(document: Mapping[str, Any]) -> Any:
    found = [key for key in _WRAPPERS if key in document]
    if len(found) != 1 or len(document) != 1:
        names = ", ".join(repr(key[:50]) for key in list(document)[:10]) or "none"
        raise BadJson(f"the body has the keys {names}; {_EXPECTED}, and nothing else")
    return document[found[0]]


def _values(values: Any, served: Served) -> ParsedRequest:
    """A row or rows of the only input. Raises: BadJson, BadPicture, BadTensor."""
    signature, image = served.signature, served.image
    if len(signature.inputs) > 1:
        names = ", ".join(signature.inputs_by_name)
        raise BadTensor(
            f"the model has {len(signature.inputs)} inputs ({names}) and the body names none; send "
            '{"instances": [{input: value}, ...]}'
        )
    spec = signature.inputs[0]
    if image is not None and isinstance(values, str):
        return ParsedRequest({spec.name: _from_text(values, image)[None]}, reply=_ROW)
    if not isinstance(values, list):
        raise BadJson(f"the body holds {kind_of(values)}; {_EXPECTED}")
    if image is not None and has_pictures(values):
        return ParsedRequest({spec.name: decode_rows(values, image)}, reply=_ROWS)
    one = spec.counts_rows and _depth(values) == len(spec.shape) - 1
    array = json_codec.to_array([values] if one else values, spec)
    return ParsedRequest({spec.name: array}, reply=_ROW if one else _ROWS)


def _depth(values: Any) -> int:
    """Of lists in lists, along the first of each."""
    depth = 0
    while isinstance(values, list) and values:
        depth, values = depth + 1, values[0]
    return depth


def _from_text(text: str, image: PictureInput) -> np.ndarray:
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadPicture(
            f"the text is not base64 ({error}); expected the bytes of a JPEG or PNG: RFC 4648, 4"
        ) from None
    return decode(content, image, FORMATS)


def _most_probable(scores: np.ndarray, labels: tuple[str, ...]) -> list[dict[str, float]]:
    """For each row the labels of the most probable classes, the first first."""
    wide = scores.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    shares = powers / powers.sum(axis=1, keepdims=True)
    best = np.argsort(-shares, axis=1, kind="stable")[:, :CLASSES]
    rows = []
    for places, values in zip(best.tolist(), np.take_along_axis(shares, best, axis=1).tolist(), strict=True):
        row: dict[str, float] = {}
        for place, value in zip(places, values, strict=True):
            row.setdefault(labels[place] if place < len(labels) else str(place), value)
        rows.append(row)
    return rows
