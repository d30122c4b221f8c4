"""Say why a network is refused: the user's own line, the real reason, one way to mend it.

torch's own messages are written for people who debug torch: pages of advice, and the places named are inside torch
or the standard library. Here they become what the person needs who wrote the network. Runs nothing, decides nothing.
"""

import contextlib
import re
import site
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import fx

from foldserve.models.errors import ExportError, NotCapturable

_TORCH = Path(torch.__file__).parent
_GRADIENTS_OF_FUNCTIONS = _TORCH / "_functorch" / "eager_transforms.py"
_FAKE_QUANTISATION = _TORCH / "ao" / "quantization" / "fake_quantize.py"

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
    known = _known(error)
    if known:
        raise NotCapturable(f"{known[0]}{place}: {known[1]}") from error
    if ": `assert " in place:
        raise NotCapturable(
            f"forward asserts something of the values{place}: torch.export needs the value to go on, and no file can "
            "hold the assertion. Export with PYTHONOPTIMIZE=1 in the environment, which leaves assertions out."
        ) from error
    if "data-dependent" in text or "DataDependent" in type(error).__name__:
        raise NotCapturable(
            f"control flow depends on values{place}: torch.export cannot keep both branches, and baking one "
            "in would answer wrong without a word. Write it with torch.where or masks, or take the branch "
            "out of forward."
        ) from error
    mend = "Change that line of the network" if place else "Write that part with other torch functions"
    raise NotCapturable(
        f"torch.export refuses the network{place}: {reason(error)}. {mend}; there is no fall-back to tracing, "
        "which would bake values in."
    ) from error


_PACKED = (
    "forward packs a padded batch",
    "the sizes of a packed sequence depend on the values of the lengths, which torch.export and both files cannot "
    "follow. Run the recurrent layer on the padded batch and mask what comes out with the lengths; for a "
    "bidirectional layer flip each row by an index made of its length, and run both directions by themselves.",
)
_DIFFERENTIATES = (
    "forward computes gradients",
    "neither file can hold a backward pass. Write the derivative out with torch functions, or take it out of forward.",
)
_QUANTISES = (
    "a part of the network rounds as if it were quantised",
    "whether it does is in the buffers of FakeQuantize, and torch.export cannot branch on those. Export the network "
    "that quantisation-aware training began with, its weights loaded, or put nn.Identity() in the place of each "
    "FakeQuantize.",
)
# Functions of torch's that a capture lets through, and that make something else fail much later.
_CALLS = (
    (torch.autograd, "grad", _DIFFERENTIATES),
    (torch.autograd, "backward", _DIFFERENTIATES),
    (torch._VF, "_pack_padded_sequence", _PACKED),
)


class _Called(Exception):
    """One of _CALLS was called. told: what forward does, and the reason and the mend."""

    def __init__(self, told: tuple[str, str]) -> None:
        super().__init__(told)
        self.told = told


@contextlib.contextmanager
def refused_calls() -> Iterator[None]:
    """Within: a forward that computes gradients or packs a batch is refused at its own line. Raises: NotCapturable."""

    def refuser(told: tuple[str, str]) -> Callable[..., NoReturn]:
        def refused(*args: Any, **kwargs: Any) -> NoReturn:
            raise _Called(told)

        return refused

    originals = [getattr(owner, name) for owner, name, _ in _CALLS]
    for owner, name, told in _CALLS:
        setattr(owner, name, refuser(told))
    try:
        yield
    except _Called as error:
        raise NotCapturable(f"{error.told[0]}{user_line(error)}: {error.told[1]}") from error
    finally:
        for (owner, name, _), original in zip(_CALLS, originals, strict=True):
            setattr(owner, name, original)


def _known(error: BaseException) -> tuple[str, str] | None:
    """What forward does, and the reason and the mend, where the way to the error leads through such a part of torch."""
    files = {Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)}
    if _GRADIENTS_OF_FUNCTIONS in files:
        return _DIFFERENTIATES
    return _QUANTISES if _FAKE_QUANTISATION in files else None


def user_line(error: BaseException) -> str:
    """` at file.py, line 3, in forward: `if x.sum() > 0:`` for the innermost frame of the user's code, or "".

    The user's code is what is neither torch, foldserve's export nor Python's own library. A frame of a project is
    preferred to one of an installed package: a call of einops is where the user wrote it, and the line of a
    published network is in its package.
    """
    return _user_line(traceback.extract_tb(error.__traceback__))


_FRAME = re.compile(r'File "(?P<file>[^"\n]+)", line (?P<line>\d+), in (?P<name>.+)\n +(?P<text>.+)')


def node_line(node: fx.Node) -> str:
    """As user_line, of the line that a node of a captured graph comes from."""
    frames = [
        traceback.FrameSummary(found["file"], int(found["line"]), found["name"], line=found["text"])
        for found in _FRAME.finditer(node.meta.get("stack_trace") or "")
    ]
    return _user_line(frames)


def _user_line(every: Sequence[traceback.FrameSummary]) -> str:
    frames = [frame for frame in every if _is_user_code(frame)]
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
_NEVER_USER_CODE = (_TORCH, Path(__file__).parents[1])
