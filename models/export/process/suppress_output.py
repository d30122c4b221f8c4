"""Keep torch's exporters from writing to the user's terminal: logs, warnings, prints.

What matters they raise. Their logs here tell of optional packages that are missing and of internals.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

_LOGGERS = ("torch", "torch.onnx", "torch.export", "torch._dynamo", "torch.fx", "onnxscript", "onnx_ir")


@contextlib.contextmanager
def suppress_output() -> Iterator[None]:
    """Within: no logging from torch and onnxscript, no warnings, nothing on stdout or stderr."""
    saved = {name: logging.getLogger(name).level for name in _LOGGERS}
    children = [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger) and name.startswith(tuple(f"{n}." for n in _LOGGERS))
    ]
    disabled = {logger: logger.disabled for logger in children}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sink = io.StringIO()
        try:
            for name in _LOGGERS:
                logging.getLogger(name).setLevel(logging.CRITICAL + 1)
            for logger in children:
                logger.disabled = True
            with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
                yield
        finally:
            for logger, was in disabled.items():
                logger.disabled = was
            for name, level in saved.items():
                logging.getLogger(name).setLevel(level)
