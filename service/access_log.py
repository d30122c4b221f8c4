"""The access log: one JSON object per line and request, on the logger foldserve.access.

JSON in ASCII, because parts of it come from clients: whatever they send, a line stays a line.
"""

import json
import logging
import sys
from typing import Final

from service.call import Call

_log = logging.getLogger("foldserve.access")
_PATH_CHARS: Final = 500


def log_access(call: Call, status: int, duration_s: float) -> None:
    """Write the line of one finished request (status 499: the client left before its answer)."""
    line = {
        "request_id": call.request_id,
        "method": call.method,
        "path": call.path[:_PATH_CHARS],
        "route": call.route,
        "protocol": call.protocol,
        "model": call.model,
        "version": call.version,
        "status": status,
        "code": call.error_code or "",
        "rows": call.rows,
        "batch_rows": call.batch_rows,
        "body_bytes": call.body_bytes,
        "ms": round(duration_s * 1000, 3),
    }
    _log.info(json.dumps(line, separators=(",", ":")))


def open_access_log() -> None:
    """Send the lines, bare, to this process's stdout; other records go where logs.py sends them."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    _log.handlers = [handler]
    _log.setLevel(logging.INFO)
    _log.propagate = False
