"""The form of a rule, and of the place it is asked about.

A rule is data: the ops it is for, why_not (a reason, or None when it holds) and an effect that computes edits
and where the affine map goes next, and changes nothing itself. Producer rules move a map from a value into
what makes it: Alternatives, tried in order. Consumer rules move it from inputs into all that read them: one
Propagated. search.py walks; plan.py edits.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import fx

from foldserve.models.export.fold.affine import Affine
from foldserve.models.export.fold.constants import Constants
from foldserve.models.export.fold.graph import (
    arguments,
    call_arguments,
    describe,
    dtype_of,
    rank_of,
    shape_of,
    static,
)
from foldserve.models.export.fold.plan import Edit, NotFoldable, Rewrite


@dataclass(frozen=True, eq=False)
class Goal:
    """value must come out as affine(value). reader = its only reader; None: the rule looked at the readers itself."""

    value: fx.Node
    affine: Affine
    reader: fx.Node | None


@dataclass(frozen=True, eq=False)
class Alternative:
    """One way to make a value come out as wanted: edits here, goals for what it is made of."""

    edits: tuple[Edit, ...] = ()
    goals: tuple[Goal, ...] = ()


@dataclass(frozen=True, eq=False)
class Propagated:
    """What a call becomes when its inputs lose their map: edits, and the map on each output (None: the only one)."""

    edits: tuple[Edit, ...] = ()
    outputs: dict[int | None, Affine] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Match:
    """A call that a rule is asked about.

    Of a producer: value = the node to come out as affine(value), output = which output of call that is.
    Of a consumer: inputs = the inputs whose readers must apply the map themselves; affine = the map of the
    only one.
    """

    call: fx.Node
    value: fx.Node
    output: int | None
    affine: Affine
    constants: Constants
    inputs: dict[fx.Node, Affine] = field(default_factory=dict)

    @cached_property
    def arguments(self) -> dict[str, Any]:
        return arguments(self.call)

    def node(self, name: str) -> fx.Node:
        """The argument called name, which must be a node."""
        found = self.arguments[name]
        if not isinstance(found, fx.Node):
            raise NotFoldable(f"{describe(self.call)} takes no tensor as {name}")
        return found

    def weight(self, name: str) -> torch.Tensor:
        """The constant called name, exactly (Constants.value). why_not has seen that it is one."""
        found = self.constants.value(self.arguments[name])
        if found is None:
            raise NotFoldable(f"the {name} of {describe(self.call)} is not a constant")
        return found

    def optional_weight(self, name: str) -> torch.Tensor | None:
        return None if self.arguments.get(name) is None else self.weight(name)

    def dtype(self, name: str) -> torch.dtype:
        """The type that the graph has the argument called name in, which new constants in its place are rounded to."""
        return dtype_of(self.node(name))

    def rewrite(self, target: Any = None, /, **changes: Any) -> Rewrite:
        """The same call (or one of target) with some arguments changed."""
        values = self.arguments | changes if target is None else changes
        target = self.call.target if target is None else target
        args, kwargs = call_arguments(target, values)
        return Rewrite(self.call, target, args, kwargs)

    def along(self, axis: int, node: fx.Node) -> tuple[torch.Tensor, torch.Tensor]:
        """scale and shift as vectors along node's axis. Raises NotFoldable when the map varies elsewhere."""
        axis %= rank_of(node)
        size = static(shape_of(node)[axis])
        vectors = None if size is None else self.affine.along(axis, size)
        if vectors is None:
            raise NotFoldable(self.wrong_axis(axis) or f"axis {axis} of {describe(node)} has a dynamic size")
        return vectors

    def wrong_axis(self, axis: int) -> str | None:
        """The reason when the map varies along another axis than axis."""
        if all(mine == axis for mine in self.affine.axes):
            return None
        mine = ", ".join(map(str, self.affine.axes))
        return f"{describe(self.call)} has its features on axis {axis}, the norm acts on axis {mine}"


@dataclass(frozen=True)
class ProducerRule:
    """How a value made by one of targets can come out as affine(value)."""

    name: str
    targets: frozenset[Any]
    why_not: Callable[[Match], str | None]
    alternatives: Callable[[Match], list[Alternative]]


@dataclass(frozen=True)
class ConsumerRule:
    """How a call to one of targets can apply its inputs' map itself, or pass it on."""

    name: str
    targets: frozenset[Any]
    why_not: Callable[[Match], str | None]
    propagated: Callable[[Match], Propagated]


def table(rules: tuple[Any, ...]) -> dict[Any, Any]:
    """The rules by target. Each target has one rule."""
    by_target: dict[Any, Any] = {}
    for rule in rules:
        for target in rule.targets:
            assert target not in by_target, (
                f"{target} has two rules: {rule.name} and {by_target[target].name}"
            )
            by_target[target] = rule
    return by_target
