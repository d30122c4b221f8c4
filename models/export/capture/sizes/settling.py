"""Find an example that torch.export captures with every dynamic axis free.

    before  the user's example, and a way to capture with Dim.AUTO
    after   the program, the example it was captured with, and what it assumed of the sizes (guards.py)

torch.export takes a size of 1 for a constant, inside the network too: five halvings of 32 leave 1, and the axis is
fixed. Then the example is doubled along the axis, which keeps multiples, until nothing is fixed. Likewise where two
axes happen to have one size, and the network does the same when they have two.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import sympy  # type: ignore[import-untyped]
import torch

from foldserve.models.errors import NotCapturable
from foldserve.models.export.capture.sizes.guards import Assumptions, read_assumptions
from foldserve.models.export.capture.sizes.sizes import Narrowed
from foldserve.models.export.capture.sizes.trials import Eager, Trials, Verdict
from foldserve.models.export.network.example.dynamic_axes import ROWS
from foldserve.models.export.network.example.example import Example
from foldserve.models.export.network.example.row_modes import SERVE_TOGETHER

# 5 doublings: eight halvings leave 1 of an example of 256, and 8 of the last example tried.
_MOST_DOUBLINGS = 6

Export = Callable[[Example], torch.export.ExportedProgram]


@dataclass(frozen=True)
class Settled:
    """example: the user's, or a larger one. narrowed: axes that must have one size, where the network takes two."""

    program: torch.export.ExportedProgram
    example: Example
    assumptions: Assumptions
    narrowed: tuple[Narrowed, ...]


def settle(example: Example, export: Export, eager: Eager) -> Settled:
    """Capture with an example in which no dynamic axis is fixed. eager: the network itself on flat inputs.

    Raises: NotCapturable, with the line, when the network fixes an axis at any size, or hangs one on the rows.
    """
    enlarged = example
    for _ in range(_MOST_DOUBLINGS):
        program = export(enlarged)
        assumptions = read_assumptions(program, enlarged.axes)
        doubled, narrowed = _to_double(program, enlarged, assumptions, eager)
        if not doubled:
            return Settled(program, enlarged, assumptions, tuple(narrowed))
        enlarged = _doubled(enlarged, doubled)
        if eager(enlarged.tensors) is None:
            break
    name = min(doubled)
    raise _fixed(name, *assumptions.fixed.get(name, (own_sizes(enlarged)[name], "")))


def own_sizes(example: Example) -> dict[str, int]:
    """The example's size of each dynamic axis, by name; the rows too."""
    return {
        name: tensor.shape[axis]
        for tensor, axes in zip(example.tensors, example.axes, strict=True)
        for axis, name in axes.items()
    }


def _to_double(
    program: torch.export.ExportedProgram, example: Example, assumptions: Assumptions, eager: Eager
) -> tuple[set[str], list[Narrowed]]:
    """The axes to double before the next capture, and what was narrowed by those that need not be."""
    own = own_sizes(example)
    for name, (size, place) in assumptions.fixed.items():
        if name == ROWS or not _by_a_one(assumptions, name):
            raise _fixed(name, size, place)
    if assumptions.fixed:
        return set(assumptions.fixed), []
    narrowed: list[Narrowed] = []
    doubled: set[str] = set()
    for name, (other, times, plus) in assumptions.linked.items():
        changed = name if name != ROWS else other
        verdict = _apart(program, example, eager, {**own, changed: 2 * own[changed]})
        place = _place_of({name, other}, assumptions)
        if verdict is Verdict.RIGHT:
            doubled.add(changed)
        elif ROWS in (name, other):
            raise NotCapturable(
                f"the network takes only as many rows as {changed!r} is long{place}. The server decides how many rows "
                f"a batch has: the rows, dim 0, must not hang on another dim. {SERVE_TOGETHER}"
            )
        elif verdict is Verdict.WRONG:
            told = f"{times if times > 1 else ''}{' * ' if times > 1 else ''}{other}{f' + {plus}' if plus else ''}"
            narrowed.append(
                Narrowed(
                    name,
                    f"must be {told}: with other sizes the network answers otherwise than the files{place}",
                )
            )
    return doubled, narrowed


def _apart(
    program: torch.export.ExportedProgram, example: Example, eager: Eager, sizes: Mapping[str, int]
) -> Verdict:
    graph = program.module(check_guards=False)
    graph._forward_pre_hooks.clear()  # which would refuse what is to be tried
    return Trials(eager, lambda *tensors: example.call(graph, tensors), example).verdict(sizes)


def _by_a_one(assumptions: Assumptions, name: str) -> bool:
    """Whether an axis was fixed since a size computed from it came out as 1, which a larger example can change."""
    equalities = (a.expression for a in assumptions.of(name) if a.is_equality())
    return any(
        one == sympy.Integer(1) and not other.is_Symbol
        for equality in equalities
        for one, other in (equality.args, reversed(equality.args))
    )


def _place_of(names: Iterable[str], assumptions: Assumptions) -> str:
    wanted = set(names)
    return next((a.place for a in assumptions.every if a.names == wanted and a.is_equality()), "")


def _doubled(example: Example, names: set[str]) -> Example:
    tensors = []
    for tensor, axes in zip(example.tensors, example.axes, strict=True):
        wide = tensor
        for axis, name in axes.items():
            if name in names:
                wide = torch.cat([wide, wide], dim=axis)
        tensors.append(wide)
    return dataclasses.replace(example, tensors=tuple(tensors))


def _fixed(name: str, size: int, place: str) -> NotCapturable:
    if name == ROWS:
        return NotCapturable(
            f"the network fixes the number of rows at that of the example, {size} in dim 0{place}. Use x.shape[0] or "
            f"-1 in view and reshape, no Python loop over the rows, and rows in dim 0. {SERVE_TOGETHER}"
        )
    return NotCapturable(
        f"the network does not take every size of the dynamic axis {name!r}: it fixes it at {size}{place}. Make the "
        "axis static, or the network free of that size: no int() of it, and no Python loop over it"
    )
