"""Which model version a call asks for, and what is said when there is no such one or it is not ready."""

from collections.abc import Iterable, Mapping

from foldserve.service.engine.served import ServedModel, ServedVersion, Status
from foldserve.service.errors import Draining, NotReady, UnknownModel, UnknownVersion
from foldserve.service.inference.plan import RequestPlan

_NAMES_SHOWN = 20

Plans = Mapping[tuple[str, str], Mapping[str, RequestPlan]]
"""By model and version, and by the key of the protocol of the body: what becomes of a request that asks for nothing
special."""


def find_model(served: Status, name: str | None, default: str | None) -> ServedModel:
    """The model of that name, or the default: the one set, else the only one. Raises UnknownModel, NotReady."""
    models, broken = served.models(), served.broken()
    if name is None:
        name = default
    if name is None:
        if len(models) == 1 and only_model(models, broken):
            return next(iter(models.values()))
        raise UnknownModel(
            f"the request names no model and not just one is served ({_names(models)}); name one, as in "
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


def check_ready(status: Status) -> None:
    """Raise Draining or NotReady, naming what is waited for, unless every model to be served is ready."""
    if status.ready():
        return
    check_not_draining(status)
    waiting = [model.name for model in status.models().values() if not model.ready]
    broken = list(status.broken())
    why = f"cannot be served: {', '.join(broken[:20])}; GET /info says why" if broken else ""
    if waiting or not broken:
        named = ", ".join(waiting[:20]) or "the workers"
        why = f"waiting for {named}; try again shortly{'; ' * bool(why)}{why}"
    raise NotReady(f"not ready: {why}")


def check_not_draining(status: Status) -> None:
    """Raise Draining when shutdown has begun."""
    if status.draining():
        raise Draining("the server is shutting down; send requests to another one")


def _cannot_be_served(what: str) -> NotReady:
    return NotReady(f"{what} cannot be served; GET /info says why, and the operator of the server can fix it")


def _names(named: Iterable[str]) -> str:
    names = sorted(named)
    shown = ", ".join(names[:_NAMES_SHOWN])
    return f"{shown} and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else shown or "none"
