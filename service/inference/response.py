"""An answer as plain data, and the one shape of every error: {"error": what, "code": stable word}."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from service.errors import ServiceError

JSON: Final = "application/json"
Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back to the client; Content-Length and the headers that every answer has are the front's.

    close: the connection cannot be used again, because the rest of the request's body will not be read.
    rest: what follows `body`, of a body that is too large to be one object; used up while it is sent.
    """

    status: int
    body: bytes
    content_type: str = JSON
    headers: Headers = ()
    close: bool = False
    rest: deque[bytes] = field(default_factory=deque)

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return len(self.body) + sum(map(len, self.rest))


def json_answer(value: Any, status: int = 200, headers: Headers = ()) -> Answer:
    """Return value as a JSON answer."""
    return Answer(status, orjson.dumps(value), JSON, headers)


def error_answer(error: ServiceError, *, close: bool = False) -> Answer:
    """Return the answer that tells the client of error."""
    body = orjson.dumps({"error": str(error), "code": error.code})
    return Answer(error.status, body, JSON, tuple(error.headers().items()), close)
