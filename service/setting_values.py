"""The values that settings may have: each function reads a string, or what YAML made of it.

Raises: ValueError with what was expected.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

_SIZE: Final = re.compile(r"(\d+)\s*(KiB|MiB|GiB)?", re.IGNORECASE | re.ASCII)

_SIZE_UNITS: Final = {"": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30}

_DEVICE: Final = re.compile(r"auto|cpu|cuda|cuda:\d+(,\d+)*", re.ASCII)


def whole_number(low: int, high: int) -> Callable[[Any], int]:
    """A whole number in this range, both ends included."""

    def parse(value: Any) -> int:
        text = str(value).strip()
        if (
            isinstance(value, bool)
            or not re.fullmatch(r"[+-]?\d{1,18}", text, re.ASCII)
            or not low <= int(text) <= high
        ):
            raise ValueError(f"a whole number from {low} to {high}")
        return int(text)

    return parse


def seconds(high: float) -> Callable[[Any], float]:
    """A number of seconds from 0."""

    def parse(value: Any) -> float:
        text = str(value).strip()
        if (
            isinstance(value, bool)
            or not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text, re.ASCII)
            or float(text) > high
        ):
            raise ValueError(f"a number of seconds from 0 to {high:g}")
        return float(text)

    return parse


def parse_size(value: Any) -> int:
    """A number of bytes, also with a unit."""
    match = _SIZE.fullmatch(str(value).strip())
    size = int(match[1]) * _SIZE_UNITS[(match[2] or "").lower()] if match else 0
    if isinstance(value, bool) or not 1 <= size <= 2**40:
        raise ValueError("a number of bytes from 1 to 1TiB, plain or as in 512KiB, 64MiB, 1GiB")
    return size


def choice(*words: str) -> Callable[[Any], str]:
    """One of these words."""

    def parse(value: Any) -> str:
        if str(value).lower() not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return str(value).lower()

    return parse


def parse_boolean(value: Any) -> bool:
    """True or false, as people write it."""
    words = {
        "true": True,
        "yes": True,
        "on": True,
        "1": True,
        "false": False,
        "no": False,
        "off": False,
        "0": False,
    }
    found = words.get(str(value).strip().lower())
    if found is None:
        raise ValueError("true or false")
    return found


def parse_text(value: Any) -> str:
    """A name."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a name")
    return value.strip()


def parse_hosts(value: Any) -> str:
    """Addresses to listen on, separated by commas."""
    text = parse_text(value)
    for name in text.split(","):
        name = name.strip()
        path = name.startswith("unix:")
        if (
            name in ("", "unix:")
            or ("/" in name and not path)
            or re.fullmatch(r"[^:]*:\d+|\[.*\]:\d+", name, re.ASCII)
        ):
            raise ValueError(
                "names or IP addresses, without http:// and without a port (--port has it), or unix:/path; several "
                "with commas"
            )
    return text


def parse_device(value: Any) -> str:
    """Devices to serve on."""
    text = str(value).strip().lower()
    if not _DEVICE.fullmatch(text):
        raise ValueError("auto, cpu, cuda (every GPU), or GPUs by number as in cuda:0 or cuda:0,1")
    return text


def parse_folder(value: Any) -> Path:
    """A folder that is there."""
    if not isinstance(value, str | Path) or not str(value) or not Path(value).is_dir():
        raise ValueError(
            "a folder that holds <model>/<version>/ folders: name it, or make one with "
            "`foldserve export TARGET --repository DIR`"
        )
    return Path(value)
