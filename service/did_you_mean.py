"""What was probably meant by a word that is not known: one rule for commands, options, settings, keys and names."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_LONGEST: Final = 100
"""Of a word that is compared; comparing takes time in its square."""
_MOST: Final = 3
"""Known words that begin with the given one, and are all suggested."""


def similar(word: str, known: Iterable[str]) -> list[str]:
    """The known words that this one begins, or else the closest one to it; at most three."""
    words = list(known)
    longer = [one for one in words if word.lstrip("-") and one.startswith(word)]
    if 0 < len(longer) <= _MOST:
        return longer
    return difflib.get_close_matches(word[:_LONGEST], words, n=1)


def did_you_mean(word: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """The end of an error's text: "; did you mean x?", or `otherwise` (by default a list of all that is known)."""
    words = list(known)
    found = similar(word, words)
    if found:
        return f"; did you mean {' or '.join(found)}?"
    return f"; {otherwise or 'expected one of ' + ', '.join(words)}"


def similar_folder(path: Path) -> str:
    """ "; did you mean x?" for a folder that is not there and a similar one beside it; else nothing."""
    try:
        beside = [one.name for one in path.parent.iterdir() if one.is_dir()]
    except OSError:
        return ""
    found = [] if path.name in beside else similar(path.name, beside)
    return f"; did you mean {' or '.join(str(path.parent / name) for name in found)}?" if found else ""
