"""What an exporter's or a runtime's error says, in one line: they wrap it in pages of traces and advice."""

import re
from collections.abc import Iterator

# What ONNX Runtime puts before its texts: the kind of error, which the class of the error says too.
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")


def causes(error: BaseException) -> Iterator[BaseException]:
    """error, and what it was raised from, up to the first cause."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def innermost(error: BaseException) -> BaseException:
    """The first cause of error."""
    return list(causes(error))[-1]


def reason(error: BaseException) -> str:
    """The kind of error and the first line of its text, without a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return f"{type(error).__name__}: {_PREFIX.sub('', lines[0]).rstrip('.')}"
