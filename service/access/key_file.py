"""Keys, from YAML: a file, or what stands in the settings themselves. No text made here shows what may be a key.

- name: web                     who presents the key, for the log; at most 64 letters, digits, "_", "." and "-"
  sha256: 2bb80d537b1da3e3...   of the key; or the key itself: `key: ...`
  scopes: [infer]               of infer, control, metrics; infer unless given
  models: [resnet, mlp]         all, unless given
  rows_per_s: 500               no limit, unless given
  queue_share: 0.25             of each model's queue.max_rows; no limit, unless given
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from foldserve.service.access.scopes import SCOPES
from foldserve.service.did_you_mean import similar
from foldserve.service.documents import BadDocument, parse_yaml, read_regular
from foldserve.service.errors import ConfigError
from foldserve.service.options import Option, number, parse_all

MOST_KEYS: Final = 10_000
MOST_LIMITED: Final = 1024
"""Keys with limits: what each has waiting is counted in memory that is made at the start."""
_FILE_BYTES: Final = 4 * 2**20
_SHORTEST_KEY: Final = 16
_KEY: Final = re.compile(r"[\x21-\x7e]{16,512}")
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_DIGEST: Final = re.compile(r"[0-9A-Fa-f]{64}")
_LOOKS_LIKE_A_PATH: Final = re.compile(r".*(/|\.ya?ml|\.json|\.txt).*", re.DOTALL)
_HOW: Final = "make one with `openssl rand -hex 32`, and its sha256 with `printf %s KEY | sha256sum`"


@dataclass(frozen=True)
class Key:
    """digest: SHA-256. scopes: bits. models: None = all. rows_per_s, queue_share: 0 = no limit."""

    name: str
    digest: bytes
    scopes: int
    models: tuple[str, ...] | None = None
    rows_per_s: float = 0.0
    queue_share: float = 0.0

    @property
    def limited(self) -> bool:
        """Whether anything is counted of it."""
        return self.rows_per_s > 0 or self.queue_share > 0


def digest_of(key: bytes) -> bytes:
    """What a key is known by."""
    return hashlib.sha256(key).digest()


class KeySource:
    """What the setting `keys` says: the path of a file, or keys. path: None when they stand there themselves."""

    def __init__(self, given: str | Sequence[Any]) -> None:
        self._given = given
        inline = not isinstance(given, str) or given.lstrip()[:1] in ("[", "{", "-")
        self.path = None if inline else Path(str(given)).absolute()

    def read(self) -> tuple[Key, ...]:
        """The keys. Raises: ConfigError with every problem found."""
        where = "the setting keys"
        try:
            if self.path is not None:
                where = "the file of --keys"
                if _LOOKS_LIKE_A_PATH.fullmatch(
                    str(self._given)
                ):  # else it may be a key, given where none belongs
                    where = f"the keys file {str(self.path)!r}"
                document = _parsed(read_regular(self.path, _FILE_BYTES))
            elif isinstance(self._given, str):
                document = _parsed(self._given.encode("utf-8", "replace"))
            else:
                document = self._given
        except FileNotFoundError:
            raise ConfigError(
                f"{where} is not there; give the path of a YAML file: docs/security.md"
            ) from None
        except BadDocument as error:
            raise ConfigError(f"{where} {error}") from None
        keys, problems = read_keys(document)
        if problems:
            raise ConfigError(*(f"{where}: {problem}" for problem in problems))
        return keys


def _parsed(content: bytes) -> Any:
    """Raises: BadDocument that shows nothing of the content; the parser's own text has the line."""
    try:
        return parse_yaml(content)
    except BadDocument as error:
        cause = error.__cause__
        if cause is None:  # of a few plain texts of ours
            raise
        mark = getattr(cause, "problem_mark", None) if isinstance(cause, yaml.MarkedYAMLError) else None
        place = "" if mark is None else f" at line {mark.line + 1}, column {mark.column + 1}"
        raise BadDocument(f"is not YAML{place}; expected a list of keys, as in docs/security.md") from None


def read_keys(document: Any) -> tuple[tuple[Key, ...], list[str]]:
    """The keys of a document, and what is wrong with it."""
    if not isinstance(document, list) or not document:
        return (), ["it holds no list of keys; expected `- {name: ..., sha256: ..., scopes: [infer]}` lines"]
    if len(document) > MOST_KEYS:
        return (), [f"it has {len(document)} keys; expected at most {MOST_KEYS}"]
    keys: list[Key] = []
    problems: list[str] = []
    for at, entry in enumerate(document, 1):
        key = _read_key(f"key {at}", entry, problems)
        if key is not None:
            keys.append(key)
    problems += _repeated([key.name for key in keys], "name")
    problems += _repeated([key.digest.hex() for key in keys], "key", [key.name for key in keys])
    limited = sum(key.limited for key in keys)
    if limited > MOST_LIMITED:
        problems.append(f"{limited} keys have rows_per_s or queue_share; expected at most {MOST_LIMITED}")
    return tuple(keys), problems


def _repeated(values: list[str], what: str, names: list[str] | None = None) -> list[str]:
    first: dict[str, int] = {}
    found = []
    for at, value in enumerate(values):
        if value in first:
            before = values[first[value]] if names is None else f"{names[first[value]]!r} and {names[at]!r}"
            found.append(f"two keys have one {what}: {before}; expected a {what} for each")
        first.setdefault(value, at)
    return found


def _scopes(value: Any) -> int:
    words = value if isinstance(value, list) else [value]
    if not words or any(not isinstance(word, str) or word not in SCOPES for word in words):
        raise ValueError(f"a list of {', '.join(SCOPES)}")
    bits = 0
    for word in words:
        bits |= SCOPES[word]
    return bits


def _models(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(one, str) and one for one in value):
        raise ValueError("a list of names of models; leave it out for all")
    return tuple(dict.fromkeys(value))


def _name(value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError("a name of at most 64 letters, digits, `_`, `.` and `-`")
    return value


_RATE: Final = number(0.001, 1e9, "rows per second")
_SHARE: Final = number(0.001, 1, "a queue, as in 0.25")
_FIELDS: Final = (
    Option("name", _name),
    Option("scopes", _scopes, SCOPES["infer"]),
    Option("models", _models),
    Option("rows_per_s", _RATE, 0.0),
    Option("queue_share", _SHARE, 0.0),
)
_SECRETS: Final = ("key", "sha256")


def _read_key(place: str, entry: Any, problems: list[str]) -> Key | None:
    known = [*(field.name for field in _FIELDS), *_SECRETS]
    if not isinstance(entry, dict):
        problems.append(f"{place} is not a mapping; expected one of {', '.join(known)}")
        return None
    name = entry.get("name")
    if isinstance(name, str) and _NAME.fullmatch(name):
        place = f"key {name!r}"
    before = len(problems)
    for unknown in (one for one in entry if one not in known):
        near = similar(unknown, known) if isinstance(unknown, str) else []
        # Not the word itself: it may be a secret that went to the wrong place.
        hint = f", which may have been meant for {near[0]!r}" if near else ""
        problems.append(f"{place} has an unknown field{hint}; expected only {', '.join(known)}")
    given = {one.name: (f"{place}: {one.name}", entry[one.name]) for one in _FIELDS if one.name in entry}
    if "name" not in given:
        problems.append(f"{place} has no name; expected one, for the log")
    values, wrong = parse_all(_FIELDS, given)
    problems += wrong
    digest = _digest(place, entry, problems)
    if len(problems) > before or digest is None:
        return None
    return Key(digest=digest, **values)


def _digest(place: str, entry: dict[str, Any], problems: list[str]) -> bytes | None:
    """Of the key that an entry holds or tells the digest of."""
    key, told = entry.get("key"), entry.get("sha256")
    if (key is None) == (told is None):
        problems.append(f"{place} needs either `sha256` or `key`; {_HOW}")
    elif told is not None:
        if isinstance(told, str) and _DIGEST.fullmatch(told):
            return bytes.fromhex(told)
        problems.append(f"{place}: sha256 is not 64 hexadecimal digits, in quotes; {_HOW}")
    elif isinstance(key, str) and _KEY.fullmatch(key):
        return digest_of(key.encode())
    else:
        problems.append(
            f"{place}: key is not {_SHORTEST_KEY} to 512 visible ASCII characters, in quotes (a short one can be "
            f"guessed); {_HOW}"
        )
    return None
