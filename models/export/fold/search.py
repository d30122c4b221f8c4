"""The search for a plan that folds one affine map: up into what makes a value, or down into all that read it.

Decides only: every function gives a Plan or raises NotFoldable with the reason; the graph is not touched.
Up is a depth-first search with alternatives (a shift can go into either branch of an addition). Down is one
pass in the order of execution, so that branches which meet again bring their maps together.
"""

import heapq

from torch import fx

from foldserve.models.export.fold.affine import Affine
from foldserve.models.export.fold.constants import Constants, rounded
from foldserve.models.export.fold.graph import (
    describe,
    dtype_of,
    is_tensor,
    parts,
    producer_of,
    readers,
    uses,
)
from foldserve.models.export.fold.plan import Bypass, NotFoldable, Plan, Substitute
from foldserve.models.export.fold.rule import DownRule, Goal, Match, UpRule

# Published networks need fewer than 200 steps for a norm; a long chain of two-way choices could need any
# number.
_MOST_STEPS = 2000
_DEEPEST = 150


class Search:
    """One search for one map, over one graph. Counts its steps."""

    def __init__(
        self, up_rules: dict[object, UpRule], down_rules: dict[object, DownRule], constants: Constants
    ) -> None:
        self._up_rules = up_rules
        self._down_rules = down_rules
        self._constants = constants
        self._steps = 0

    def up(self, value: fx.Node, source: fx.Node, affine: Affine, reader: fx.Node) -> Plan:
        """A plan after which source comes out as affine(source), and readers of value read source."""
        self._steps = 0
        return self._solve(Goal(source, affine, reader), Plan((Bypass(value, source),)), 0)

    def _solve(self, demand: Goal, plan: Plan, depth: int) -> Plan:
        value, affine = demand.value, demand.affine
        if affine.is_identity:
            return plan
        self._steps += 1
        if self._steps > _MOST_STEPS or depth > _DEEPEST:
            raise NotFoldable(f"the search for a place was given up after {self._steps} steps")
        held = self._constants.value(value)
        if held is not None and held.is_floating_point() and demand.reader is not None:
            if uses(demand.reader, value) != 1:
                raise NotFoldable(f"{describe(demand.reader)} takes {describe(value)} twice")
            new = rounded(affine.scale * held.double() + affine.shift, dtype_of(value), value.name)
            return plan.plus([Substitute(demand.reader, value, new)])
        self._check_readers(demand)
        call, output = producer_of(value)
        rule = self._up_rules.get(call.target) if call.op == "call_function" else None
        if rule is None:
            raise NotFoldable(
                f"{describe(call)} has no weights to take it, and it does not commute with a norm"
            )
        site = Match(call, value, output, affine, self._constants)
        reason = rule.why_not(site)
        if reason is not None:
            raise NotFoldable(reason)
        first: NotFoldable | None = None
        for step in rule.steps(site):
            try:
                tried = plan.plus(step.edits)
                for wanted in step.demands:
                    if is_tensor(wanted.value) and dtype_of(wanted.value) != dtype_of(value):
                        raise NotFoldable(f"{describe(call)} changes the dtype, which rounds")
                    tried = self._solve(wanted, tried, depth + 1)
                return tried
            except NotFoldable as refused:
                first = first or refused
        raise first or NotFoldable(f"{describe(call)} offers no way")

    def _check_readers(self, demand: Goal) -> None:
        value, reader = demand.value, demand.reader
        if reader is None:
            return
        others = [other for other in readers(value) if other is not reader]
        if others:
            raise NotFoldable(f"{describe(value)} is also read by {describe(others[0])}")
        if uses(reader, value) != 1:
            raise NotFoldable(f"{describe(reader)} takes {describe(value)} twice")

    def down(self, value: fx.Node, source: fx.Node, affine: Affine) -> Plan:
        """A plan after which everything that read value reads source and applies affine itself."""
        plan = Plan((Bypass(value, source),))
        moving: dict[fx.Node, Affine] = {value: affine}
        waiting: list[fx.Node] = []
        queued: set[fx.Node] = set()

        def queue(node: fx.Node) -> None:
            for reader in readers(node):
                if reader not in queued:
                    queued.add(reader)
                    heapq.heappush(waiting, reader)

        queue(value)
        while waiting:
            reader = heapq.heappop(waiting)
            inputs = {node: moving[node] for node in reader.all_input_nodes if node in moving}
            plan, outputs = self._step_down(reader, inputs, plan)
            for node, moved in outputs.items():
                if not moved.is_identity:
                    moving[node] = moved
                    queue(node)
        return plan

    def _step_down(
        self, reader: fx.Node, inputs: dict[fx.Node, Affine], plan: Plan
    ) -> tuple[Plan, dict[fx.Node, Affine]]:
        if reader.op == "output":
            raise NotFoldable("it is an output of the network")
        rule = self._down_rules.get(reader.target) if reader.op == "call_function" else None
        if rule is None:
            raise NotFoldable(
                f"{describe(reader)} reads it, has no weights to take it, and does not commute with it"
            )
        for node in inputs:
            if uses(reader, node) != 1:
                raise NotFoldable(f"{describe(reader)} takes {describe(node)} twice")
        site = Match(reader, reader, None, next(iter(inputs.values())), self._constants, inputs)
        reason = rule.why_not(site)
        if reason is not None:
            raise NotFoldable(reason)
        moved = rule.moved(site)
        outputs: dict[fx.Node, Affine] = {}
        for output, affine in moved.outputs.items():
            values = [reader] if output is None else parts(reader).get(output, [])
            outputs.update(dict.fromkeys(values, affine))
        first = next(iter(inputs))
        for node in outputs:
            if dtype_of(node) != dtype_of(first):
                raise NotFoldable(f"{describe(reader)} changes the dtype, which rounds")
        return plan.plus(moved.edits), outputs
