"""The search for a plan that folds one affine map: into the producer of a value, or into all its consumers.

Decides only: every function gives a Plan or raises NotFoldable with the reason; the graph is not touched.
Into the producer is a depth-first search with alternatives (a shift can go into either branch of an addition). Into
the consumers is one pass in the order of execution, so that branches which meet again bring their maps together.
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
from foldserve.models.export.fold.rule import ConsumerRule, Goal, Match, ProducerRule

# Published networks need fewer than 200 steps for a norm; a long chain of two-way choices could need any
# number.
_MOST_STEPS = 2000
_DEEPEST = 150


class Search:
    """One search for one map, over one graph. Counts its steps."""

    def __init__(
        self,
        producer_rules: dict[object, ProducerRule],
        consumer_rules: dict[object, ConsumerRule],
        constants: Constants,
    ) -> None:
        self._producer_rules = producer_rules
        self._consumer_rules = consumer_rules
        self._constants = constants
        self._steps = 0

    def into_producer(self, value: fx.Node, source: fx.Node, affine: Affine, reader: fx.Node) -> Plan:
        """A plan after which source comes out as affine(source), and readers of value read source."""
        self._steps = 0
        return self._solve(Goal(source, affine, reader), Plan((Bypass(value, source),)), 0)

    def _solve(self, goal: Goal, plan: Plan, depth: int) -> Plan:
        value, affine = goal.value, goal.affine
        if affine.is_identity:
            return plan
        self._steps += 1
        if self._steps > _MOST_STEPS or depth > _DEEPEST:
            raise NotFoldable(f"the search for a place was given up after {self._steps} steps")
        held = self._constants.value(value)
        if held is not None and held.is_floating_point() and goal.reader is not None:
            if uses(goal.reader, value) != 1:
                raise NotFoldable(f"{describe(goal.reader)} takes {describe(value)} twice")
            new = rounded(affine.scale * held.double() + affine.shift, dtype_of(value), value.name)
            return plan.plus([Substitute(goal.reader, value, new)])
        self._check_readers(goal)
        call, output = producer_of(value)
        rule = self._producer_rules.get(call.target) if call.op == "call_function" else None
        if rule is None:
            raise NotFoldable(
                f"{describe(call)} has no weights to take it, and it does not commute with a norm"
            )
        match = Match(call, value, output, affine, self._constants)
        reason = rule.why_not(match)
        if reason is not None:
            raise NotFoldable(reason)
        first: NotFoldable | None = None
        for alternative in rule.alternatives(match):
            try:
                tried = plan.plus(alternative.edits)
                for wanted in alternative.goals:
                    if is_tensor(wanted.value) and dtype_of(wanted.value) != dtype_of(value):
                        raise NotFoldable(f"{describe(call)} changes the dtype, which rounds")
                    tried = self._solve(wanted, tried, depth + 1)
                return tried
            except NotFoldable as error:
                first = first or error
        raise first or NotFoldable(f"{describe(call)} offers no way")

    def _check_readers(self, goal: Goal) -> None:
        value, reader = goal.value, goal.reader
        if reader is None:
            return
        others = [other for other in readers(value) if other is not reader]
        if others:
            raise NotFoldable(f"{describe(value)} is also read by {describe(others[0])}")
        if uses(reader, value) != 1:
            raise NotFoldable(f"{describe(reader)} takes {describe(value)} twice")

    def into_consumers(self, value: fx.Node, source: fx.Node, affine: Affine) -> Plan:
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
            plan, outputs = self._into_consumer(reader, inputs, plan)
            for node, carried in outputs.items():
                if not carried.is_identity:
                    moving[node] = carried
                    queue(node)
        return plan

    def _into_consumer(
        self, reader: fx.Node, inputs: dict[fx.Node, Affine], plan: Plan
    ) -> tuple[Plan, dict[fx.Node, Affine]]:
        if reader.op == "output":
            raise NotFoldable("it is an output of the network")
        rule = self._consumer_rules.get(reader.target) if reader.op == "call_function" else None
        if rule is None:
            raise NotFoldable(
                f"{describe(reader)} reads it, has no weights to take it, and does not commute with it"
            )
        for node in inputs:
            if uses(reader, node) != 1:
                raise NotFoldable(f"{describe(reader)} takes {describe(node)} twice")
        match = Match(reader, reader, None, next(iter(inputs.values())), self._constants, inputs)
        reason = rule.why_not(match)
        if reason is not None:
            raise NotFoldable(reason)
        propagated = rule.propagated(match)
        outputs: dict[fx.Node, Affine] = {}
        for output, affine in propagated.outputs.items():
            values = [reader] if output is None else parts(reader).get(output, [])
            outputs.update(dict.fromkeys(values, affine))
        first = next(iter(inputs))
        for node in outputs:
            if dtype_of(node) != dtype_of(first):
                raise NotFoldable(f"{describe(reader)} changes the dtype, which rounds")
        return plan.plus(propagated.edits), outputs
