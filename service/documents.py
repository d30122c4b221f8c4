"""From a file that anybody may have written to plain values of bounded size, or a text that says why not.

Nothing here hangs, runs out of memory or raises anything but BadDocument, whatever the file is: a pipe, a device, a
gigabyte, a million brackets, aliases of aliases. What the values mean is for others (manifest.py,
model_config.py).
"""

import json
import math
import os
import reprlib
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

MOST_LEVELS: Final = 16
"""Of lists and mappings in each other."""
_LARGEST: Final = 2**63 - 1
"""Of whole numbers: what JSON encoders and counters take."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100
_SHORT.maxlevel = 3


class BadDocument(Exception):
    """A file cannot be read; the text says why, and what was expected, without the file's name."""


def shown(value: Any) -> str:
    """A value for an error's text: what repr() gives, at a bounded length."""
    try:
        return _SHORT.repr(value)[:300]
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "a number of very many digits"


def printable(text: str) -> str:
    """The text for a terminal's line: what would move the cursor or begin another line is written as its escape."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def read_regular(path: Path, most_bytes: int) -> bytes:
    """The content of an ordinary file. Raises: BadDocument, FileNotFoundError."""
    try:
        # Opening a pipe would wait for a writer without O_NONBLOCK.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        if path.is_symlink():
            raise BadDocument(
                f"is a link to {os.readlink(path)}, which is not there; expected a file"
            ) from None
        raise
    except OSError as error:
        raise BadDocument(
            f"cannot be read: {error.strerror}; expected a file that this user may read"
        ) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise BadDocument("is not an ordinary file but a folder, a pipe or a device; expected a file")
    with os.fdopen(fd, "rb") as file:
        try:
            content = file.read(most_bytes + 1)
        except OSError as error:
            raise BadDocument(f"cannot be read: {error.strerror}") from error
    if len(content) > most_bytes:
        raise BadDocument(f"is larger than {most_bytes} bytes; expected at most so many")
    return content


def parse_json(content: bytes) -> Any:
    """The value of a JSON document. Raises: BadDocument."""
    try:
        value = json.loads(content)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # UnicodeDecodeError and numbers of too many digits too
        raise BadDocument(f"is not JSON: {str(error)[:200]}") from error
    _check(value)
    return value


def parse_yaml(content: bytes) -> Any:
    """The value of a YAML document, None for an empty one. Raises: BadDocument."""
    try:
        value = yaml.load(content.decode("utf-8"), _Loader)
    except BadDocument:
        raise
    # The constructors of numbers and dates raise whatever int(), float() and datetime() do.
    except Exception as error:
        raise BadDocument(f"is not YAML: {' '.join(str(error).split())[:300]}") from error
    _check(value)
    return value


class _Loader(yaml.SafeLoader):
    """Gives up where a document is nested too deeply, or refers to itself."""

    _level = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise BadDocument("uses an alias (*); expected every value written out")
        self._level += 1
        if self._level > MOST_LEVELS:
            raise _too_deep()
        node = super().compose_node(parent, index)
        self._level -= 1
        return node


def _check(value: Any) -> None:
    """Raise BadDocument for what no encoder accepts: deep nesting, giant numbers, half characters."""
    for one, level in _walk(value):
        if level > MOST_LEVELS:
            raise _too_deep()
        if isinstance(one, int) and not -_LARGEST <= one <= _LARGEST:
            raise BadDocument(f"has the number {shown(one)}; expected at most {_LARGEST}")
        if isinstance(one, float) and math.isnan(one):
            raise BadDocument("has nan where a number is expected")
        if isinstance(one, str):
            try:
                one.encode()
            except UnicodeEncodeError:
                raise BadDocument(f"has the text {shown(one)}, which is not Unicode") from None


def _walk(value: Any) -> Iterator[tuple[Any, int]]:
    """A value and all in it, each with how many lists and mappings it is in."""
    left = [(value, 0)]
    while left:
        one, level = left.pop()
        yield one, level
        if level > MOST_LEVELS:
            continue
        if isinstance(one, dict):
            left += [(inner, level + 1) for pair in one.items() for inner in pair]
        elif isinstance(one, list | tuple | set):
            left += [(inner, level + 1) for inner in one]


def _too_deep() -> BadDocument:
    return BadDocument(f"is nested more than {MOST_LEVELS} levels deep; expected at most so many")
