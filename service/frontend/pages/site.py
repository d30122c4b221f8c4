"""The page at /docs: what this server serves, and a try-it of each model, for a person who has just found it.

Static files (site/), the same for everyone: what is served they read from /info and /openapi.json. Written by hand and
not a viewer of OpenAPI documents: such a one is a megabyte and more of script, needs styles inline, and knows neither
pictures nor labels nor where a request's time went.

The browser is told to load nothing from elsewhere, to run no script and no style but these files, and to turn no text
into elements (Trusted Types): names come from model files.
"""

from pathlib import Path
from typing import Final

from foldserve.service.errors import NotFound
from foldserve.service.inference.response import Response

_FOLDER: Final = Path(__file__).parent / "site"
_TYPES: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FILES: Final = {path.name: path.read_bytes() for path in _FOLDER.iterdir() if path.suffix in _TYPES}
_PAGE: Final = "page.html"
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",  # blob: the picture that the reader is about to send
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS: Final = (
    ("Content-Security-Policy", _POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-cache"),
)


def page() -> Response:
    """The page itself."""
    return _response(_PAGE)


def page_files() -> tuple[str, ...]:
    """The names of the files that it loads."""
    return tuple(sorted(set(_FILES) - {_PAGE}))


def page_file(name: str) -> Response:
    """One of the files that it loads. Raises: NotFound."""
    if name not in page_files():
        raise NotFound(f"there is no file {name[:100]!r} of the page at /docs; GET /docs is the page")
    return _response(name)


def _response(name: str) -> Response:
    kind = _TYPES[Path(name).suffix]
    return Response(200, _FILES[name], f"{kind}; charset=utf-8", HEADERS)
