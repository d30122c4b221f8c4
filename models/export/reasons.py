"""What an exporter's or a runtime's error says, in one line: they wrap it in pages of traces and advice."""

import re

# What ONNX Runtime puts before its texts: the kind of error, which the class of the error says too.
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")


def innermost(error: BaseException) -> BaseException:
    """The first cause of error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def reason(error: BaseException) -> str:
    """The kind of error and the first line of its text, without a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return f"{type(error).__name__}: {_PREFIX.sub('', lines[0]).rstrip('.')}"
