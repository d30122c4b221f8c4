"""Which pages of other origins a browser may let read this server's answers (CORS; Fetch Standard, 3.2).

Keys travel in a header that a page sets itself. So cookies and other credentials that browsers send by themselves are
never allowed for (there is no Access-Control-Allow-Credentials), and `*` opens nothing that a key closes.
"""

from collections.abc import Sequence
from typing import Final

ANY: Final = "*"
_REQUEST_HEADERS: Final = (
    "Authorization, X-Api-Key, Content-Type, Content-Encoding, Accept, X-Request-Id, X-Timeout-Ms, X-Priority, "
    "X-Tensor-Name, X-Tensor-Datatype, X-Tensor-Shape, Inference-Header-Content-Length, traceparent, tracestate"
)
_SHOWN_HEADERS: Final = (
    "X-Request-Id, Server-Timing, Retry-After, X-Tensor-Name, X-Tensor-Datatype, X-Tensor-Shape, "
    "Inference-Header-Content-Length, WWW-Authenticate"
)
_MAX_AGE_S: Final = 600

Headers = tuple[tuple[str, str], ...]


class CrossOrigin:
    """Origins as browsers name them: "https://app.example"; ANY for all."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._any = ANY in origins
        self._origins = frozenset(origins)

    def headers(self, origin: str | None) -> Headers:
        """What an answer carries for a page of this origin; None: the request names none."""
        if self._any:
            return (("Access-Control-Allow-Origin", ANY), ("Access-Control-Expose-Headers", _SHOWN_HEADERS))
        if origin is None or origin not in self._origins:
            return (("Vary", "Origin"),)
        return (
            ("Access-Control-Allow-Origin", origin),
            ("Access-Control-Expose-Headers", _SHOWN_HEADERS),
            ("Vary", "Origin"),
        )

    def preflight(self, origin: str | None, methods: Sequence[str]) -> Headers:
        """What the answer to a preflight carries besides, where the page may ask. methods: of the path."""
        if not self._any and origin not in self._origins:
            return ()
        return (
            ("Access-Control-Allow-Methods", ", ".join(methods)),
            ("Access-Control-Allow-Headers", _REQUEST_HEADERS),
            ("Access-Control-Max-Age", str(_MAX_AGE_S)),
        )
