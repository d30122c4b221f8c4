"""Read `--example NAME:DTYPE:SIZES`: an input of a network, described on the command line.

x:FP32:-1x3x224x224 is an input x of float32 pictures; a -1 is a dynamic axis, the first one the rows, unless
another is: x:FP32:50xrowsx40. Types are the words of the Open Inference Protocol, or the names that torch and numpy
have for them (float32), in any case. Pure: text in, tensors out.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from foldserve.models.errors import BadExample
from foldserve.models.export.network.example.datatypes import OIP_WORDS
from foldserve.models.export.network.example.dynamic_axes import ROWS
from foldserve.service.did_you_mean import did_you_mean

# As users write them, in small letters: fp32 or float32. Not `float` or `int`: they have one size in torch and another
# in numpy.
_TYPES = {
    name: dtype
    for dtype, word in OIP_WORDS.items()
    for name in (word.lower(), str(dtype).removeprefix("torch."))
}
_ROWS = 2
# The size of a dynamic axis in the example: even and composite, since networks halve their inputs.
_DYNAMIC_SIZE = 32
# Small numbers are valid ids for nearly every table of embeddings.
_INTEGERS_BELOW = 2
_PICTURE_VALUES = 256


def examples_from(
    options: Sequence[str],
) -> tuple[tuple[Tensor, ...], dict[str, dict[int, str]], tuple[str, ...]]:
    """Return example inputs, dynamic axes and input names. Raises: BadExample with every bad option."""
    problems: list[str] = []
    inputs: list[Tensor] = []
    axes: dict[str, dict[int, str]] = {}
    names: list[str] = []
    generator = torch.Generator().manual_seed(0)
    for option in options:
        parts = option.rsplit(":", 2)
        if len(parts) != 3 or not parts[0]:
            problems.append(f"{option!r}: expected NAME:DTYPE:SIZES, for example x:FP32:-1x3x224x224")
            continue
        name, word, sizes = parts
        problem = _problem(name, word, sizes, names)
        if problem:
            problems.append(f"{option!r}: {problem}")
            continue
        shape = sizes.split("x")
        rows = shape.index(ROWS) if ROWS in shape else 0
        mine = {axis: f"{name}_{axis}" for axis, size in enumerate(shape) if size == "-1" and axis != rows}
        if rows:
            mine[rows] = ROWS
        if mine:
            axes[name] = mine
        names.append(name)
        concrete = [
            _ROWS if axis == rows else _DYNAMIC_SIZE if size == "-1" else int(size)
            for axis, size in enumerate(shape)
        ]
        inputs.append(_values(_TYPES[word.lower()], concrete, generator))
    if problems:
        raise BadExample("--example " + "; ".join(problems))
    return tuple(inputs), axes, tuple(names)


def _problem(name: str, word: str, sizes: str, names: Sequence[str]) -> str | None:
    if not name.isidentifier():
        return f"{name!r} is not a name for an input; expected letters, digits and '_'"
    if name in names:
        return f"the input {name!r} is given twice"
    if word.lower() not in _TYPES:
        known = ", ".join(f"{oip} ({str(dtype).removeprefix('torch.')})" for dtype, oip in OIP_WORDS.items())
        return f"{word!r} is not a type{did_you_mean(word.lower(), _TYPES, f'expected one of {known}')}"
    if not re.fullmatch(r"(-1|rows|[1-9][0-9]*)(x(-1|rows|[1-9][0-9]*))*", sizes):
        return f"{sizes!r} are not sizes; expected numbers or -1 joined by 'x', for example -1x3x224x224"
    counted = sizes.split("x").count(ROWS)
    if counted > 1:
        return f"{sizes!r} says `rows` {counted} times; expected one size that counts the rows"
    if not counted and not sizes.startswith("-1"):
        return (
            f"the first size is the rows and must be -1, not {sizes.partition('x')[0]}; where another size is "
            "the rows, write `rows` for it"
        )
    return None


def _values(dtype: torch.dtype, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=torch.float32)
    below = _PICTURE_VALUES if dtype == torch.uint8 else _INTEGERS_BELOW
    return torch.randint(0, below, shape, generator=generator).to(dtype)
