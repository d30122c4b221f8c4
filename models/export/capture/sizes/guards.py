"""What torch.export assumed of the sizes, read from the program that it gave.

    before  an ExportedProgram that was captured with Dim.AUTO, and the names of the axes that vary
    after   Assumptions: for sizes by name, which assumptions do not hold there, and the line that made each

A branch on a size, a slice, a view and a kernel leave a guard, an expression of the sizes that was true for the
example. All of them count here, and so do the ranges of the symbols: torch.export takes no size as 1. An assumption
that is broken need not matter (many only choose a memory layout): sizes.py finds out. Knows nothing of networks.
"""

import math
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.printers import PythonPrinter

# Numbers of an assumption that are looked at: one with more comes from unrolled code, where they are near each other.
_MOST_CONSTANTS = 24
_FUNCTIONS = {"math": math, "torch": torch, "__builtins__": {"max": max, "min": min, "abs": abs, "int": int}}


@dataclass(frozen=True)
class Assumption:
    """Something that was true for the example's sizes. names: of the axes that it speaks of."""

    text: str
    names: frozenset[str]
    place: str
    code: CodeType
    expression: Any

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether it is true for sizes, by name; a division by 0 in it is no."""
        return self.holds_for({_variable(name): size for name, size in sizes.items()})

    def holds_for(self, values: dict[str, int]) -> bool:
        """As holds, of sizes under the names of their variables."""
        try:
            return bool(eval(self.code, _FUNCTIONS, values))
        except (ArithmeticError, ValueError):
            return False

    def is_equality(self) -> bool:
        return isinstance(self.expression, sympy.Eq)

    def turning_points(self, name: str, sizes: Mapping[str, int]) -> set[int]:
        """Sizes of one axis near which it may become true or false, the others being as in sizes.

        They are made of the numbers in it, since only there, and periodically, such an expression turns.
        """
        others = {sympy.Symbol(_variable(n)): s for n, s in sizes.items() if n != name}
        try:
            left = self.expression.subs(others) if others else self.expression
        except (ArithmeticError, ValueError):
            return set()
        numbers = {abs(int(n)) for n in left.atoms(sympy.Integer)} | {1}
        if len(numbers) > _MOST_CONSTANTS:
            numbers = set(sorted(numbers)[:: -(-len(numbers) // _MOST_CONSTANTS)]) | {max(numbers)}
        made = {x for a in numbers for b in numbers for x in (a * b, a // max(b, 1), a + b, a - b)}
        return {x + step for x in made for step in (-1, 0, 1) if x + step >= 1}


@dataclass(frozen=True)
class Assumptions:
    """fixed: name → the one size that the capture took for a constant, and where. linked: name → (other, times, plus):
    its size must be times that of the other, plus so many. every: all that was assumed, those two included.
    """

    every: tuple[Assumption, ...]
    fixed: Mapping[str, tuple[int, str]]
    linked: Mapping[str, tuple[str, int, int]]

    def broken(self, sizes: Mapping[str, int], among: Sequence[int] | None = None) -> tuple[int, ...]:
        """The places in `every`, or of those among them, of what does not hold for sizes, one for each name."""
        places = range(len(self.every)) if among is None else among
        values = {_variable(name): size for name, size in sizes.items()}
        return tuple(i for i in places if not self.every[i].holds_for(values))

    def of(self, name: str) -> tuple[Assumption, ...]:
        """What was assumed of one axis, alone or with others."""
        return tuple(assumption for assumption in self.every if name in assumption.names)


def read_assumptions(program: torch.export.ExportedProgram, axes: Sequence[Mapping[int, str]]) -> Assumptions:
    """What program assumes of the axes, {axis: name} for each of its inputs in their order."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    named = [values[name] for name in program.graph_signature.user_inputs if isinstance(name, str)]
    inputs: list[Any] = [value for value in named if isinstance(value, torch.Tensor)]
    shape_env = inputs[0].fake_mode.shape_env
    sizes = [
        (name, value.shape[axis])
        for value, mine in zip(inputs, axes, strict=True)
        for axis, name in mine.items()
    ]
    symbols = {
        size.node._expr: sympy.Symbol(_variable(name))
        for name, size in sizes
        if isinstance(size, torch.SymInt) and size.node._expr.is_Symbol
    }
    fixed: dict[str, tuple[int, str]] = {}
    linked: dict[str, tuple[str, int, int]] = {}
    for name, size in sizes:
        if isinstance(size, int) or size.node.expr.is_number:
            symbol = None if isinstance(size, int) else size.node._expr
            place = _place(shape_env.replacements_slocs.get(symbol))
            fixed[name] = (int(size), place)
        elif link := _link(size.node.expr.xreplace(symbols), name):
            linked[name] = link
    every: dict[tuple[str, frozenset[str]], Assumption] = {}
    for expression, place in (*_guards(shape_env), *_ranges(program)):
        told = _assumption(expression.xreplace(symbols), place)
        if told is not None:
            every.setdefault((told.text, told.names), told)
    for name, (own, place) in fixed.items():
        # Where two inputs have one size, only the guard knows the line.
        places = (a.place for a in every.values() if a.names == {name} and a.is_equality() and a.place)
        fixed[name] = (own, place or next(places, ""))
    return Assumptions(tuple(every.values()), fixed, linked)


def _guards(shape_env: Any) -> Iterable[tuple[Any, str]]:
    for guard in shape_env.guards:
        yield guard.expr, _place(guard.sloc)


def _ranges(program: torch.export.ExportedProgram) -> Iterable[tuple[Any, str]]:
    for expression, bounds in program.range_constraints.items():
        if bounds.lower not in (-int_oo, 0):
            yield sympy.Ge(expression, bounds.lower, evaluate=False), ""
        if bounds.upper != int_oo:
            yield sympy.Le(expression, bounds.upper, evaluate=False), ""


def _assumption(expression: Any, place: str) -> Assumption | None:
    """None for one that is always true, or speaks of what is only known when the network runs."""
    if expression in (sympy.true, True) or not expression.free_symbols:
        return None
    names = [_name(str(symbol)) for symbol in expression.free_symbols]
    if any(name is None for name in names):
        return None
    text = PythonPrinter().doprint(expression)
    shown = text.replace(_PREFIX, "")
    return Assumption(
        shown, frozenset(n for n in names if n), place, compile(text, "guard", "eval"), expression
    )


def _link(expression: Any, name: str) -> tuple[str, int, int] | None:
    """(other, times, plus) where a size is that of another axis, taken so many times, plus so many."""
    if len(expression.free_symbols) != 1:
        return None
    (symbol,) = expression.free_symbols
    other = _name(str(symbol))
    if other is None or other == name:
        return None
    times, plus = expression.coeff(symbol, 1), expression.coeff(symbol, 0)
    if not (times.is_Integer and plus.is_Integer and times >= 1) or expression != times * symbol + plus:
        return None
    return other, int(times), int(plus)


_PREFIX = "size_of_"


def _variable(name: str) -> str:
    return f"{_PREFIX}{name}"


def _name(variable: str) -> str | None:
    return variable.removeprefix(_PREFIX) if variable.startswith(_PREFIX) else None


def _place(location: Any) -> str:
    """` at net.py, line 9, in forward: ...` where the user's own line made the assumption; else nothing."""
    for frame in (getattr(location, "maybe_user_loc", None), getattr(location, "framework_loc", None)):
        if isinstance(frame, traceback.FrameSummary) and not frame.filename.startswith(_TORCH):
            return f" at {Path(frame.filename).name}, line {frame.lineno}, in {frame.name}: `{frame.line}`"
    return ""


_TORCH = str(Path(torch.__file__).parent)
