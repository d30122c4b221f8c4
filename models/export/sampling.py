"""Fresh random inputs that a network accepts, drawn in the image of its example.

What an input is like is read from its example, tensor by tensor:

- two values (booleans, integers 0 and 1, floats such as 0 and -inf): a mask. Its usual value stays in every row, since
  no client sends a row that is masked wholly; where the example is padded at the end, or not at all, so is what is
  drawn; where it is padded in front, in front. All ones of an integer are the mask of a batch without padding.
- other integers: from the least to the most that the example shows, both of which are met. A lone negative number and
  the ends of the type stand for "nothing here": they come as often as in the example, and widen no range.
- bytes of one value: a picture, 0 to 255.
- floats: as far as the example reaches where it is never negative, else with its mean and spread, in rows of several
  scales. Those of one value tell nothing, and are drawn from a normal distribution.

How much of a range a network takes cannot be seen (a table may have users beside weekdays): Breadth says how closely
the draws follow the example, and breadth_of tries the widest first. Seeded: the same call gives the same tensors.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from models.export.example import ROWS, Breadth, Example

# Of the spread that the example shows: a network may be exact at one scale, and off at another.
_SCALES = (1.0, 0.25, 2.0)
_MASKED_AT_MOST = -1e4
"""A float mask adds 0, or so little as to leave nothing: -inf, -1e9, the least float."""


def settled(example: Example, call: Callable[[Sequence[Tensor]], Any]) -> Example:
    """The example with the widest breadth that its network takes.

    call: the network on flat inputs. Where it raises, or answers with what is not finite where the example's is,
    something was drawn that is no input of it. Where it takes nothing but its example, WHOLE: what is wrong with
    other numbers of rows is for others to tell, in the words that fit.
    """
    usual = _answers_finite(call, example.tensors)
    if usual is None:
        return example
    for breadth in Breadth:
        tried = dataclasses.replace(example, breadth=breadth)
        if all(
            (finite := _answers_finite(call, random_inputs(tried, rows, seed=rows))) is not None
            and (finite or not usual)
            for rows in (example.rows, 7)
        ):
            return tried
    return example


def not_tried(example: Example) -> list[str]:
    """What the example leaves untried, a sentence each; none of a good example."""
    told = []
    for name, tensor in zip(example.names, example.tensors, strict=True):
        values = _integers(tensor) if not _is_mask(tensor) and tensor.dtype != torch.uint8 else None
        if values is not None and values.numel() and bool((values == values.flatten()[0]).all()):
            told.append(
                f"all values of {name!r} are {int(values.flatten()[0])} in the example: nothing else was tried; give "
                "an example that shows the valid range"
            )
    if example.breadth is Breadth.ROWS:
        told.append(
            "the network refuses inputs drawn like its example, so only its rows were tried; give an example "
            "of more and different rows"
        )
    return told


def random_inputs(
    example: Example, rows: int, seed: int, sizes: Mapping[str, int] | None = None
) -> tuple[Tensor, ...]:
    """One tensor per input, with this many rows.

    sizes: {label: size} for dynamic axes other than the rows; the example's size where a label is missing.
    """
    generator = torch.Generator().manual_seed(seed)
    wanted = {**(sizes or {}), ROWS: rows}
    # The rows of inputs that belong together stay together.
    picks = torch.randint(0, example.rows, (rows,), generator=generator)
    tensors = []
    for tensor, axes in zip(example.tensors, example.axes, strict=True):
        shape = [wanted.get(axes.get(axis, ""), size) for axis, size in enumerate(tensor.shape)]
        if example.breadth is Breadth.ROWS or tensor.numel() == 0:
            tensors.append(_rows_of(tensor, shape, picks))
        elif _is_mask(tensor):
            tensors.append(_mask(tensor, shape, generator))
        else:
            known = _columns(tensor, axes) if example.breadth is Breadth.COLUMN else tensor.reshape(-1)
            drawn = _floats if tensor.is_floating_point() else _whole_numbers
            tensors.append(drawn(tensor, known, shape, generator))
    return tuple(tensors)


def _answers_finite(call: Callable[[Sequence[Tensor]], Any], inputs: Sequence[Tensor]) -> bool | None:
    """Whether all that the network answers is finite; None where it raises."""
    try:
        leaves = pytree.tree_leaves(call([tensor.clone() for tensor in inputs]))
    except Exception:  # whatever it is: these are no inputs of the network
        return None
    floats = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return all(bool(torch.isfinite(leaf).all()) for leaf in floats)


def _integers(tensor: Tensor) -> Tensor | None:
    """The values in int64, where they are integers."""
    return None if tensor.is_floating_point() or tensor.dtype == torch.bool else tensor.to(torch.int64)


# -- masks


def _is_mask(tensor: Tensor) -> bool:
    if tensor.dtype == torch.bool:
        return True
    if tensor.dim() < 2 or tensor.dtype == torch.uint8:
        return False
    numbers = _integers(tensor)
    if numbers is not None:
        return bool(((numbers == 0) | (numbers == 1)).all()) and bool((numbers == 1).any())
    zero, one, nothing = tensor == 0, tensor == 1, tensor <= _MASKED_AT_MOST
    two_values = bool((zero | one).all()) or (
        bool((zero | nothing).all()) and torch.unique(tensor).numel() == 2
    )
    return two_values and bool(zero.any()) and bool((~zero).any())


def _mask(tensor: Tensor, shape: list[int], generator: torch.Generator) -> Tensor:
    """Rows in which the usual value is met; the other one too, unless the example has rows without it."""
    flat = tensor.reshape(tensor.shape[0], -1)
    first, last = flat[:, 0], flat[:, -1]
    usual = _most_common(flat if len(torch.unique(flat)) == 1 else torch.cat([first, last]))
    others = torch.unique(flat[flat != usual])
    other = others[0] if len(others) else _opposite(usual)
    length = 1
    for size in shape[1:]:
        length *= size
    rows = shape[0]
    least_other = 0 if bool((flat == usual).all(1).any()) or length < 2 else 1
    if tensor.dim() == 1:
        chosen = torch.rand(rows, 1, generator=generator) < 0.5
        chosen[0] = False
    elif _is_padding(flat, usual):
        kept = torch.randint(1, length + 1 - least_other, (rows, 1), generator=generator)
        chosen = torch.arange(length) >= kept
        if not bool((first == usual).all()):
            chosen = chosen.flip(1)  # padded in front
    else:
        chosen = torch.rand(rows, length, generator=generator) < 0.5
        place = torch.randint(0, length, (rows,), generator=generator)
        chosen[torch.arange(rows), (place + 1) % length] |= least_other > 0
        chosen[torch.arange(rows), place] = False
    return torch.where(chosen, other, usual).to(tensor.dtype).reshape(shape)


def _is_padding(flat: Tensor, usual: Tensor) -> bool:
    """Whether each row is the usual value up to some place and the other one behind it, or the other way round."""
    changes = (flat[:, 1:] != flat[:, :-1]).sum(1)
    ends = flat[:, 0] if bool((flat[:, 0] == usual).all()) else flat[:, -1]
    return bool((changes <= 1).all()) and bool((ends == usual).all())


def _most_common(values: Tensor) -> Tensor:
    found, counts = torch.unique(values, return_counts=True)
    most: Tensor = found[counts.argmax()]
    return most


def _opposite(usual: Tensor) -> Tensor:
    return (~usual.bool()).to(usual.dtype)


# -- numbers


def _columns(tensor: Tensor, axes: Mapping[int, str]) -> Tensor:
    """What the example shows at each place of its static axes: (values, *places), with 1 for a dynamic axis."""
    dynamic = [axis for axis in range(tensor.dim()) if axis in axes]
    moved = tensor.movedim(dynamic, list(range(len(dynamic))))
    values = moved.reshape(-1, *moved.shape[len(dynamic) :])
    for axis in dynamic[1:]:
        values = values.unsqueeze(axis)
    return values


def _whole_numbers(tensor: Tensor, known: Tensor, shape: list[int], generator: torch.Generator) -> Tensor:
    numbers = known.to(torch.int64)
    nothing = _stands_for_nothing(tensor.dtype, numbers)
    is_number = ~torch.isin(numbers, nothing)
    info = torch.iinfo(torch.int64)
    least = torch.where(is_number, numbers, info.max).amin(0)
    most = torch.where(is_number, numbers, info.min).amax(0)
    least, most = torch.minimum(least, most), torch.maximum(least, most)
    if tensor.dtype == torch.uint8 and bool((least == most).all()):
        least, most = torch.zeros_like(least), torch.full_like(most, 255)
    part = torch.rand(shape, generator=generator, dtype=torch.float64)
    _meet_both_ends(part, by_column=least.dim() > 0, generator=generator)
    span = (most.double() - least.double() + 1).expand(shape)
    values = least.expand(shape) + (part * span).to(torch.int64).clamp(max=info.max)
    values = torch.minimum(values, most.expand(shape))
    for one in nothing:
        share = float((numbers == one).double().mean())
        values = torch.where(torch.rand(shape, generator=generator) < share, one, values)
    return values.to(tensor.dtype)


def _meet_both_ends(part: Tensor, by_column: bool, generator: torch.Generator) -> None:
    """Make some of these parts of a range 0 and some 1: the last id shows faults that no other does."""
    if by_column and len(part) > 2:
        part[0], part[-1] = 0.0, 1.0
    elif part.numel() > 1:
        first, second = torch.randperm(part.numel(), generator=generator)[:2].tolist()
        part.view(-1)[first], part.view(-1)[second] = 0.0, 1.0


def _stands_for_nothing(dtype: torch.dtype, numbers: Tensor) -> Tensor:
    """The values that are no numbers of a range: a lone negative one, and the ends of a wide type."""
    found = torch.unique(numbers)
    negative = found[found < 0]
    lone = negative if len(negative) == 1 and len(found) > 2 else negative[:0]
    info = torch.iinfo(dtype)
    ends = torch.tensor([end for end in (info.min, info.max) if info.bits >= 32 and end and end <= 2**63 - 1])
    nothing: Tensor = torch.unique(torch.cat([lone, found[torch.isin(found, ends)]]))
    return nothing


def _floats(tensor: Tensor, known: Tensor, shape: list[int], generator: torch.Generator) -> Tensor:
    values = known.double()
    values = torch.where(torch.isfinite(values), values, torch.nan)
    mean = values.nanmean(0)
    low = torch.where(values.isnan(), torch.inf, values).amin(0)
    high = torch.where(values.isnan(), -torch.inf, values).amax(0)
    spread = (values - mean).square().nanmean(0).sqrt()
    same = ~(low < high)
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    scale = torch.tensor(_SCALES, dtype=torch.float64)[torch.arange(shape[0]) % len(_SCALES)]
    scaled = normal * scale.reshape(-1, *[1] * (len(shape) - 1))
    within = torch.where(same, 0.0, low) + uniform * torch.where(same, 0.0, high - low)
    around = torch.where(same, 0.0, mean) + scaled * torch.where(same, 1.0, spread)
    return torch.where(~same & (low >= 0), within, around).float()


def _rows_of(tensor: Tensor, shape: list[int], picks: Tensor) -> Tensor:
    """These rows of the example, repeated along a dynamic axis that is longer now."""
    values = tensor[picks]
    for axis in range(1, len(shape)):
        if tensor.shape[axis] != shape[axis]:
            values = values.index_select(axis, torch.arange(shape[axis]) % max(1, tensor.shape[axis]))
    return values
