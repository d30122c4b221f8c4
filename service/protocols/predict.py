"""POST /predict: from the head and the body of a request to its answer, by way of the engine.

The order matters: whatever the head settles (model, version, types) is refused before a byte of the body is
read, whatever the body gets wrong before the request is queued, so a mistake costs its sender and nobody
else.
"""

import time
from collections.abc import Awaitable, Callable, Iterable

import numpy as np

from service.codecs import BodyType, answer_type, body_type, check_kind, decode, encode, pick_outputs
from service.engine.codec_process import LARGE_COPY_BYTES, LARGE_JSON_BYTES
from service.engine.interface import Engine, Filled, ServedModel, ServedVersion
from service.errors import (
    BadRequest,
    DeadlinePassed,
    Internal,
    NotReady,
    UnknownModel,
    UnknownVersion,
    UnsupportedMediaType,
)
from service.inference.context import PROTOCOL_OF, Call
from service.inference.response import Answer

_NAMES_SHOWN = 20


async def predict(
    call: Call,
    engine: Engine,
    read: Callable[[BodyType], Awaitable[list[bytes | bytearray]]],
    timeout_s: float | None,
    default_model: str | None,
    model: str | None = None,
    version: str | None = None,
) -> Answer:
    """Answer one request.

    Args:
        call: the head; what is learned is noted in it.
        read: returns the body, which is of this type, in the parts in which it came.
        timeout_s: counted from call.started_s; None = no bound.
        default_model: the model of requests that name none.
        model, version: from the path; None when it does not name them.
    Raises: ServiceError.
    """
    query = call.query_values(("version", "output"))
    served = find_model(engine, model, default_model)
    call.model = served.name
    chosen = find_version(engine, served, _one_version(version, query.get("version")))
    call.version = chosen.version
    own = body_type(call.headers.get("content-type"))
    call.protocol = PROTOCOL_OF[own]
    _refuse_encoding(call.headers.get("content-encoding"))
    check_kind(own, chosen.signature)
    names = pick_outputs(chosen.signature, query.get("output"))
    kind = answer_type(call.headers.get("accept"), own, names)
    if not (chosen.ready or chosen.returning):
        raise NotReady(
            f"model {served.name!r} version {chosen.version} is not ready; try again when /v2/health/ready "
            "answers 200"
        )

    parts = await read(own)
    call.body_bytes = sum(map(len, parts))
    started_s = time.perf_counter()
    inputs: dict[str, np.ndarray] | Filled
    if call.body_bytes > _large_bytes(own):
        left_s = None if timeout_s is None else timeout_s - call.elapsed_s()
        inputs = await engine.fill(
            served.name, chosen.version, own, parts, call.tensor_headers(), left_s, call.request_id
        )
        call.rows = inputs.rows
    else:
        inputs = decode(own, b"".join(parts), chosen.signature, call.tensor_headers())
        parts.clear()  # nothing of the body may stay while the request waits: only what was received is bounded
        call.rows = chosen.signature.check_inputs(inputs)
    call.stages_s["decode"] = time.perf_counter() - started_s

    left_s = None if timeout_s is None else timeout_s - call.elapsed_s()
    if left_s is not None and left_s <= 0:
        if not isinstance(inputs, dict):
            inputs.give_up()
        raise DeadlinePassed.after(timeout_s)
    outcome = await engine.infer(served.name, chosen.version, inputs, call.rows, left_s, call.request_id)
    stages = outcome.stages
    call.stages_s.update(queue=stages.queue, gather=stages.gather, run=stages.run, scatter=stages.scatter)
    call.batch_rows = outcome.batch_rows
    if outcome.error is not None:
        raise outcome.error
    if outcome.outputs is None:
        raise Internal("the engine gave neither outputs nor an error; please report it with the request id")

    started_s = time.perf_counter()
    if outcome.held is not None:
        left_s = None if timeout_s is None else timeout_s - call.elapsed_s()
        encoded = await engine.encode(outcome, kind, names, left_s)
    else:
        outputs = {name: outcome.outputs[name] for name in names}
        encoded = encode(kind, served.name, chosen.version, outputs, chosen.signature)
    call.stages_s["encode"] = time.perf_counter() - started_s
    return Answer(200, encoded.body, kind.value, encoded.headers, rest=encoded.rest)


def _large_bytes(kind: BodyType) -> int:
    """Longer bodies of this type are decoded elsewhere."""
    return LARGE_JSON_BYTES if kind is BodyType.JSON else LARGE_COPY_BYTES


def find_model(engine: Engine, name: str | None, default: str | None) -> ServedModel:
    """The model of that name, or the default: the one set, else the only one. Raises UnknownModel, NotReady."""
    models, broken = engine.models(), engine.broken()
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


def find_version(engine: Engine, model: ServedModel, version: str | None) -> ServedVersion:
    """The model's version of that name, or its default one. Raises UnknownVersion, NotReady."""
    try:
        return model.versions[model.default_version if version is None else version]
    except KeyError:
        if f"{model.name}/{version}" in engine.broken():
            raise _cannot_be_served(f"version {version} of model {model.name!r}") from None
        raise UnknownVersion(
            f"model {model.name!r} has no version {str(version)[:100]!r}; expected one of: "
            f"{_names(model.versions)}"
        ) from None


def only_model(names: Iterable[str], broken: Iterable[str]) -> bool:
    """Whether no other model is to be served, not even a broken one, than the only one of these names."""
    return {name.partition("/")[0] for name in broken} <= set(names)


def _cannot_be_served(what: str) -> NotReady:
    return NotReady(f"{what} cannot be served; GET /info tells why, and who runs the server can mend it")


def _one_version(in_path: str | None, in_query: str | None) -> str | None:
    if in_path is not None and in_query is not None and in_path != in_query:
        raise BadRequest(
            f"the path asks for version {in_path!r} and the query for {in_query!r}; name one of them"
        )
    return in_query if in_path is None else in_path


def _refuse_encoding(content_encoding: str | None) -> None:
    if content_encoding is not None and content_encoding.strip().lower() not in ("", "identity"):
        raise UnsupportedMediaType(
            f"Content-Encoding {content_encoding[:50]!r} is not read here; send the body uncompressed"
        )


def _names(named: object) -> str:
    names = sorted(named)  # type: ignore[call-overload]
    shown = ", ".join(names[:_NAMES_SHOWN])
    return f"{shown} and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else shown or "none"
