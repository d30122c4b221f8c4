"""A response as plain data, and the one shape of every error: {"error": what, "code": stable word}."""

from typing import Any, Final

import orjson

from foldserve.service.codecs.encoded import Encoded
from foldserve.service.errors import ServiceError
from foldserve.service.inference.body_budget import BodyTooLarge

JSON: Final = "application/json"
SENT_BYTES: Final = 256 * 1024
"""Of a large response: what is sent at once, and so what is kept of it when the client takes nothing."""
Headers = tuple[tuple[str, str], ...]


class Response:
    """What goes back to the client; Content-Length and the headers that every response has are the frontend's.

    closes: the connection cannot be used again, because the rest of the request's body will not be read.
    rest: what follows `body` of a large answer, where it lies in the arena; valid until the request is told that it
    was sent, or the request is done. allocation_bytes: of the arena, which are kept until then.
    """

    def __init__(
        self,
        status: int,
        body: bytes,
        media_type: str = JSON,
        headers: Headers = (),
        closes: bool = False,
        rest: memoryview | None = None,
        allocation_bytes: int = 0,
    ) -> None:
        self.status = status
        self.body = body
        self.media_type = media_type
        self.headers = headers
        self.closes = closes
        self.rest = rest
        self.allocation_bytes = allocation_bytes

    @property
    def length(self) -> int:
        """Bytes of the whole body."""
        return len(self.body) + (0 if self.rest is None else len(self.rest))


def json_response(value: Any, status: int = 200, headers: Headers = ()) -> Response:
    """Value as a JSON response."""
    return Response(status, orjson.dumps(value), JSON, headers)


def error_body(error: ServiceError) -> Encoded:
    """The body of an error response, where no protocol has its own format."""
    return Encoded(JSON, orjson.dumps({"error": str(error), "code": error.code}))


def error_response(error: ServiceError, told: Encoded | None = None) -> Response:
    """The response for an error. told: its body in the protocol's own format."""
    body = error_body(error) if told is None else told
    headers = (*body.headers, *error.headers().items())
    return Response(error.status, body.body, body.media_type, headers, isinstance(error, BodyTooLarge))
