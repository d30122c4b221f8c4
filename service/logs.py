"""How the server's processes log: one line per record on stderr, with the process that wrote it."""

import logging
import sys

_FORMAT = "%(asctime)s %(levelname)-7s %(processName)s %(name)s: %(message)s"
# What the server stands on says at level info what ours says better; its warnings and errors are shown.
_QUIET = ("litserve", "uvicorn", "asyncio")


def configure_logging(level: str) -> None:
    """Log this process's records of at least `level` ("info") to stderr."""
    logging.basicConfig(level=level.upper(), format=_FORMAT, stream=sys.stderr, force=True)
    for name in _QUIET:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
