"""Say why a network is refused: the user's own line, the real reason, one way to mend it.

torch's own messages are written for people who debug torch: pages of advice, and the places named are inside torch
or the standard library. Here they become what the person needs who wrote the network. Runs nothing, decides nothing.
"""

import re
import site
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import torch

from models.errors import ExportError, NotCapturable

# Sentences that tell the reader to debug torch, to switch a check off, or to write to its authors.
_ADVICE = re.compile(
    r"please (file|report|open|leave|consider|create|use the)|github\.com|file an issue|report this|"
    r"for more (information|details)|TORCH_LOGS|TORCHDYNAMO|TORCH_|torch\._?dynamo|suppress this|"
    r"to fix (the|this) error|weights_only|if you (believe|think|trust|suspect)|this is (likely )?a bug|"
    r"the error above|user stack|set the environment|internal error",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def reason(error: BaseException) -> str:
    """`TypeError: the first thing that the message says`, without what torch advises."""
    said = without_advice(str(error))
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def without_advice(text: str) -> str:
    """The first line of text that says what is wrong, without a full stop at its end; "" where none does."""
    for line in text.splitlines():
        kept = [part for part in _SENTENCE_END.split(line.strip()) if part and not _ADVICE.search(part)]
        if kept:
            return " ".join(kept).rstrip(".")
    return ""


def refuse(error: Exception) -> NoReturn:
    """Turn what torch.export raised into the reason and the mend. Raises: always, an ExportError."""
    if isinstance(error, ExportError):
        raise error
    text = str(error)
    place = user_line(error)
    if "data-dependent" in text or "DataDependent" in type(error).__name__:
        raise NotCapturable(
            f"control flow depends on values{place}: torch.export cannot keep both branches, and baking one "
            "in would answer wrong without a word. Write it with torch.where or masks, or take the branch "
            "out of forward."
        ) from error
    raise NotCapturable(
        f"torch.export refuses the network{place}: {reason(error)}. Change that line of the "
        "network; there is no fall-back to tracing, which would bake values in."
    ) from error


def user_line(error: BaseException) -> str:
    """` at file.py, line 3, in forward: `if x.sum() > 0:`` for the innermost frame of the user's code, or "".

    The user's code is what is neither torch, foldserve's export nor Python's own library. A frame of a project is
    preferred to one of an installed package: a call of einops is where the user wrote it, and the line of a
    published network is in its package.
    """
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_user_code(frame)]
    own = [frame for frame in frames if not _is_inside(frame.filename, _PACKAGES)]
    for frame in reversed(own or frames):
        return f" at {Path(frame.filename).name}, line {frame.lineno}, in {frame.name}: `{frame.line}`"
    return ""


def _is_user_code(frame: traceback.FrameSummary) -> bool:
    if frame.filename.startswith("<") or not frame.line or _is_inside(frame.filename, _NEVER_USER_CODE):
        return False
    return _is_inside(frame.filename, _PACKAGES) or not _is_inside(frame.filename, _STANDARD_LIBRARY)


def _is_inside(filename: str, folders: tuple[Path, ...]) -> bool:
    return any(Path(filename).is_relative_to(folder) for folder in folders)


def _folders(names: Iterator[str | None]) -> tuple[Path, ...]:
    return tuple(sorted({Path(name) for name in names if name}))


# Installed packages lie inside the standard library's folder, so they are asked for first.
_PACKAGES = _folders(
    iter([*site.getsitepackages(), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
)
_STANDARD_LIBRARY = _folders(sysconfig.get_path(name) for name in ("stdlib", "platstdlib"))
_NEVER_USER_CODE = (Path(torch.__file__).parent, Path(__file__).parent)
