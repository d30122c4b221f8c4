"""What can be configured: rows of a table, and the values that they may have.

Two tables are made of these rows: that of `foldserve serve` (settings.py) and that of a model's config.yaml
(repository/model_config.py). A parser takes a string, or what YAML made of it, so that a value is written the same way
on the command line, in the environment and in either file; it raises ValueError with what was expected.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from foldserve.service.did_you_mean import did_you_mean, similar, similar_folder
from foldserve.service.documents import shown

Parser = Callable[[Any], Any]

ENV_PREFIX: Final = "FOLDSERVE_"
NO_LIMIT: Final = 10**18 - 1
"""The largest number that a parser takes."""
_SIZE: Final = re.compile(r"(\d{1,18})\s*(KiB|MiB|GiB)?", re.IGNORECASE | re.ASCII)
_SIZE_UNITS: Final = {"": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_DEVICE: Final = re.compile(r"auto|cpu|cuda|cuda:\d+(,\d+)*", re.ASCII)
_BOOLEANS: Final = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


@dataclass(frozen=True)
class Option:
    """One thing that can be configured.

    name: as it is written in a file; dotted for a key inside a section.
    parse: the value of a string, or of what YAML made of it. Raises: ValueError with what was expected.
    flag, unit, help: on the command line, for an option that can stand there.
    expected: what was expected, where the parser does not know it all.
    """

    name: str
    parse: Parser
    default: Any = None
    flag: str = ""
    unit: str = ""
    help: str = ""
    expected: str = ""

    @property
    def env(self) -> str:
        """The environment variable of one that has a flag."""
        return ENV_PREFIX + self.name.upper()

    @property
    def default_text(self) -> str:
        """The default as people write it."""
        if self.default is None:
            return "none"
        if isinstance(self.default, bool):
            return str(self.default).lower()
        if self.unit == "bytes":
            return f"{self.default >> 20}MiB"
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)


def parse_all(
    options: Iterable[Option], given: Mapping[str, tuple[str, Any]]
) -> tuple[dict[str, Any], list[str]]:
    """Check the given values; all others have their defaults.

    Args:
        given: by the option's name, where the value stands (for the error) and the value.
    Returns: a value for each option, and every problem found.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    for option in options:
        values[option.name] = option.default
        if option.name not in given:
            continue
        place, value = given[option.name]
        try:
            values[option.name] = option.parse(value)
        except ValueError as error:
            problems.append(f"{place} is {shown(value)}; expected {option.expected or error}")
    return values, problems


def whole_number(low: int, high: int = NO_LIMIT, of: str = "") -> Parser:
    """A whole number in this range, both ends included. of: what it counts."""
    return _in_range(int, r"[+-]?\d{1,18}", low, high, f"a whole number{of and ' of ' + of}")


def number(low: float, high: float, of: str) -> Parser:
    """A number in this range, both ends included, which need not be whole. of: its unit."""
    return _in_range(float, r"\d{1,9}(\.\d{1,9})?", low, high, f"a number of {of}")


def _in_range(kind: type[int] | type[float], form: str, low: float, high: float, what: str) -> Parser:
    expected = f"{what} from {low:.12g}" + (f" to {high:.12g}" if high < NO_LIMIT else "")

    def parse(value: Any) -> int | float:
        text = f"{value:.9f}" if isinstance(value, float) else str(value).strip()
        well_formed = not isinstance(value, bool) and re.fullmatch(form, text, re.ASCII)
        if not well_formed or not low <= kind(text) <= high:
            raise ValueError(expected)
        return kind(text)

    return parse


def parse_size(value: Any) -> int:
    """A number of bytes, also with a unit."""
    match = _SIZE.fullmatch(str(value).strip())
    size = int(match[1]) * _SIZE_UNITS[(match[2] or "").lower()] if match else 0
    if isinstance(value, bool) or not 1 <= size <= 2**40:
        raise ValueError("a number of bytes from 1 to 1TiB, plain or as in 512KiB, 64MiB, 1GiB")
    return size


def choice(*words: str) -> Parser:
    """One of these words."""

    def parse(value: Any) -> str:
        word = value.strip().lower() if isinstance(value, str) else ""
        if word not in words:
            near = did_you_mean(word, words) if similar(word, words) else ""
            raise ValueError(f"one of {', '.join(words)}{near}")
        return word

    return parse


def parse_boolean(value: Any) -> bool:
    """True or false, as people write it."""
    found = _BOOLEANS.get(str(value).strip().lower())
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
                "names or IP addresses, without http:// and without a port (use --port), or unix:/path; separate "
                "several with commas"
            )
    return text


def parse_file(value: Any) -> Path:
    """A file that exists; whole, for the working folder may be taken away."""
    if not isinstance(value, str | Path) or not str(value) or not Path(value).is_file():
        raise ValueError("a file that exists")
    return Path(value).absolute()


def parse_keys(value: Any) -> Any:
    """What the setting `keys` may be. What is wrong with it is told by who reads the keys: the error made of this
    parser's would show them."""
    return value


def parse_origins(value: Any) -> str:
    """Origins of pages, separated by commas."""
    text = ",".join(map(str, value)) if isinstance(value, list) else parse_text(value)
    origins = [one.strip() for one in text.split(",")]
    if "*" in origins and len(origins) > 1:
        raise ValueError("either * or origins, not both")
    if not all(one == "*" or re.fullmatch(r"https?://[A-Za-z0-9.\-\[\]:]+", one) for one in origins):
        raise ValueError(
            "origins as browsers send them, as in https://app.example or http://localhost:3000, or *"
        )
    return ",".join(origins)


def parse_device(value: Any) -> str:
    """Devices to serve on."""
    text = str(value).strip().lower()
    if not _DEVICE.fullmatch(text):
        raise ValueError("auto, cpu, cuda (every GPU), or GPUs by number as in cuda:0 or cuda:0,1")
    return text


def parse_folder(value: Any) -> Path:
    """A folder that exists."""
    if not isinstance(value, str | Path) or not str(value) or not Path(value).is_dir():
        near = similar_folder(Path(value)) if isinstance(value, str | Path) else ""
        raise ValueError(
            "a folder that holds <model>/<version>/ folders"
            + (near or "; give its path, or create one with `foldserve export TARGET --repository DIR`")
        )
    return Path(value)
