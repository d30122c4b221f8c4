"""Who makes a call, by the key in its metadata."""

from collections.abc import Iterable
from typing import Any, Final

from foldserve.service.access.gate import Gate
from foldserve.service.access.keyring import Caller
from foldserve.service.access.scopes import scope_of
from foldserve.service.errors import Unauthorized
from foldserve.service.inference.context import RequestContext

_HEADERS: Final = ("authorization", "x-api-key")

Metadata = Iterable[tuple[str, Any]] | None


def admit(gate: Gate, context: RequestContext, metadata: Metadata) -> Caller | None:
    """Who makes a call, noted in its context; None where nobody is asked. Raises: Unauthorized, Forbidden."""
    if gate.keys is None:
        return None
    found: dict[str, str] = {}
    for name, value in metadata or ():
        if name in _HEADERS and found.setdefault(name, value) != value:
            raise Unauthorized(f"the metadata has two different values of {name!r}; send one of them")
    scope = scope_of(context.path)
    caller = gate.caller(scope, found.get("authorization"), found.get("x-api-key"))
    if caller is not None:
        context.key = caller.name
        caller.check(scope)
    return caller
