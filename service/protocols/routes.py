"""One call that the server answers: a method of a path. What finds it: frontend/routing.py."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from foldserve.service.engine.served import ServedModel, ServedVersion
from foldserve.service.inference.context import RequestContext
from foldserve.service.inference.plan import RequestHead, Target
from foldserve.service.inference.response import Response

Handler = Callable[..., Awaitable[Response]]
"""Answers a call: (context, *, one keyword for each parameter in the path, and `body` where the route reads it)."""

HeadReader = Callable[..., RequestHead]
"""Reads the head of an inference request: (context, target, *, one keyword for each parameter in the path).

Raises: ServiceError."""


@dataclass(frozen=True)
class Route:
    """One method of one path; in the path, whole segments in braces are parameters.

    Exactly one of handler (what answers the call) and head (an inference request: what its head asks for).
    reads_body: the handler is given the call's body, a small one.
    operation: what /openapi.json says of it besides the summary. of_model: the same of one model version, where it
    runs one: the default model's, where the path names none.
    """

    method: str
    path: str
    summary: str
    handler: Handler | None = None
    head: HeadReader | None = None
    reads_body: bool = False
    operation: Mapping[str, Any] = field(default_factory=dict)
    of_model: Callable[[ServedModel, ServedVersion], Mapping[str, Any]] | None = None


def read_head(route: Route, context: RequestContext, parameters: Mapping[str, str]) -> RequestHead:
    """What the head of an inference request asks for. Raises: ServiceError."""
    assert route.head is not None
    query = f"?{context.query}" if context.query else ""
    return route.head(context, Target(context.path, query, route.path, context.method), **parameters)
