"""What /openapi.json says of keys, where the server asks for them: how they are sent, which call needs what, refusals.

Of a scheme without OAuth's scopes a requirement lists the roles that are needed (OpenAPI 3.1, Security Requirement
Object): the scopes of the keys file. Each call has its own; what the document says for all is the one that most have.
"""

from collections.abc import Mapping
from typing import Any, Final

from foldserve.service.access.scopes import INFER, OPEN, SCOPES, scope_of
from foldserve.service.errors import Forbidden, Unauthorized
from foldserve.service.protocols.openapi.responses import refusals
from foldserve.service.protocols.routes import Route

_REFUSED: Final = refusals((Unauthorized.status, Forbidden.status))
SCHEMES: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key of the server's keys file"},
    "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key", "description": "The same, by itself"},
}
"""Either of them."""


def _needs(scope: int) -> list[dict[str, list[str]]]:
    words = [word for word, bit in SCOPES.items() if scope & bit]
    return [{scheme: words} for scheme in SCHEMES]


USUAL: Final = _needs(INFER)
"""Of calls that do not say otherwise."""


def secured(route: Route, said: Mapping[str, Any]) -> Mapping[str, Any]:
    """An operation with what it asks of a key."""
    scope = scope_of(route.path)
    if scope == OPEN:
        return {**said, "security": []}
    refused = {**said, "responses": {**said["responses"], **_REFUSED}}
    return refused if scope == INFER else {**refused, "security": _needs(scope)}
