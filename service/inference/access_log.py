"""The access log: one JSON object per line and request, on the logger foldserve.access.

JSON in ASCII, because parts of it come from clients: whatever they send, a line stays a line.
"""

import json
import logging
from typing import Final

from foldserve.service.inference.context import RequestContext
from foldserve.service.logs.lines import LINE_BYTES
from foldserve.service.logs.records import Outlet

_log = logging.getLogger("foldserve.access")
_STDOUT: Final = 1
_PATH_CHARS: Final = 500
_SHORT_PATH_CHARS: Final = 100


def log_access(context: RequestContext, status: int, duration_s: float) -> None:
    """Write the line of one finished request (status 499: the client left before its answer)."""
    line = {
        "request_id": context.request_id,
        "method": context.method,
        "path": context.path[:_PATH_CHARS],
        "route": context.route,
        "protocol": context.protocol,
        "model": context.model,
        "version": context.version,
        "key": context.key,
        "status": status,
        "code": context.error_code or "",
        "rows": context.rows,
        "batch_rows": context.batch_rows,
        "body_bytes": context.body_bytes,
        "ms": round(duration_s * 1000, 3),
    }
    text = json.dumps(line, separators=(",", ":"))
    if len(text) >= LINE_BYTES:  # a path of characters that take twelve each
        text = json.dumps({**line, "path": context.path[:_SHORT_PATH_CHARS]}, separators=(",", ":"))
    _log.info(text)


def open_access_log() -> None:
    """Send the lines, bare, to this process's stdout, as logs/ sends other records to stderr: nobody waits for it."""
    _log.handlers = [Outlet(_STDOUT)]
    _log.setLevel(logging.INFO)
    _log.propagate = False
