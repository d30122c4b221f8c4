"""The access log: one JSON object per line and request, on the logger foldserve.access.

JSON, because parts of it come from clients: whatever they send, a line stays a line and a value stays a
value.
"""

import logging
import sys
from typing import Final

import orjson

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
    _log.info(orjson.dumps(line).decode())


def configure_logging(level: str, *, access_log: bool) -> None:
    """Set up foldserve's loggers in this process: everything to stderr, access lines bare, to stdout.

    level: one of config.LOG_LEVELS. Called at the start of every process; a second call replaces the first.
    """
    root = logging.getLogger("foldserve")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root.handlers = [handler]
    root.setLevel(level.upper())
    root.propagate = False
    access = logging.StreamHandler(sys.stdout)
    access.setFormatter(logging.Formatter("%(message)s"))
    _log.handlers = [access] if access_log else []
    _log.setLevel(logging.INFO)
    _log.propagate = False
