"""The order of work: constants first, then every norm, again until nothing changes, then the report.

Owns the edited graph while it runs. Each norm is tried into its producer (what makes its input), then into
its consumers (all that read its output), then into a sibling (a convolution that it is added to). One more
pass is needed after each success, because a fold can open the way for a neighbour: conv, norm, pool, norm.
"""

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from foldserve.models.export.fold.candidates import Candidate, constant_candidates, norm_candidate
from foldserve.models.export.fold.constants import Constants
from foldserve.models.export.fold.graph import (
    arguments,
    aten,
    dtype_of,
    is_call,
    is_tensor,
    nested_graphs,
    same_shape,
)
from foldserve.models.export.fold.norms import batch_norms
from foldserve.models.export.fold.plan import NotFoldable, Plan
from foldserve.models.export.fold.report import FoldReport, Unfolded
from foldserve.models.export.fold.rule import table
from foldserve.models.export.fold.rules.commuting import COMMUTING
from foldserve.models.export.fold.rules.elementwise import (
    ELEMENTWISE,
    ELEMENTWISE_INTO_CONSUMERS,
    ELEMENTWISE_INTO_PRODUCER,
)
from foldserve.models.export.fold.rules.index_maps import INDEX_MAPS
from foldserve.models.export.fold.rules.into_consumers import WEIGHTS_INTO_CONSUMERS
from foldserve.models.export.fold.rules.into_producer import WEIGHTS_INTO_PRODUCER
from foldserve.models.export.fold.rules.into_sibling import into_sibling, is_summed
from foldserve.models.export.fold.rules.joins import JOIN_INTO_CONSUMERS, JOIN_INTO_PRODUCER
from foldserve.models.export.fold.rules.pads import PAD_INTO_CONSUMERS, PAD_INTO_PRODUCER
from foldserve.models.export.fold.rules.recurrent import RECURRENT_INTO_CONSUMERS
from foldserve.models.export.fold.search import Search

_COMMUTING = COMMUTING + INDEX_MAPS
_INTO_PRODUCER = table(
    WEIGHTS_INTO_PRODUCER
    + ELEMENTWISE_INTO_PRODUCER
    + JOIN_INTO_PRODUCER
    + PAD_INTO_PRODUCER
    + tuple(rule.into_producer() for rule in _COMMUTING)
)
_INTO_CONSUMERS = table(
    WEIGHTS_INTO_CONSUMERS
    + RECURRENT_INTO_CONSUMERS
    + ELEMENTWISE_INTO_CONSUMERS
    + JOIN_INTO_CONSUMERS
    + PAD_INTO_CONSUMERS
    + tuple(rule.into_consumers() for rule in _COMMUTING)
)

# x op NEUTRAL = x. MobileOne adds the 0 it starts its sums with.
_NEUTRAL = {
    aten.add.Tensor: 0,
    aten.add.Scalar: 0,
    aten.sub.Tensor: 0,
    aten.sub.Scalar: 0,
    aten.mul.Tensor: 1,
    aten.mul.Scalar: 1,
    aten.div.Tensor: 1,
    aten.div.Scalar: 1,
}


def fold_batch_norms(gm: fx.GraphModule) -> FoldReport:
    """Fold every foldable batch norm of gm into other weights, in place, and say which stay and why.

    gm is an unlifted graph of aten calls (torch.export, run_decompositions({}), module()): parameters and
    buffers are get_attr nodes, node.meta["val"] has the symbolic shapes. Any floating dtype. New weights are
    new buffers; existing tensors are never written to, and those that nothing reads any more are removed from
    gm. Folded weights are computed in float64 and rounded once; what rounding took away stays with their nodes
    until exact.forget, so that gm can be proved in float64 (float64_graph.py). A second call changes nothing.
    """
    with torch.no_grad():
        gm.graph.eliminate_dead_code()
        _drop_no_ops(gm)
        found = len(batch_norms(gm)) + sum(len(batch_norms(inner)) for _, inner in nested_graphs(gm))
        Constants(gm).materialise()
        left = _fold_until_stable(gm)
        gm.graph.eliminate_dead_code()
        _remove_unread_tensors(gm)
        gm.graph.lint()
        gm.recompile()
    for name, inner in nested_graphs(gm):
        left += [
            Unfolded(norm.where, f"it is inside {name}, a branch of control flow")
            for norm in batch_norms(inner)
        ]
    return FoldReport(found, found - len(left), tuple(left))


def _fold_until_stable(gm: fx.GraphModule) -> list[Unfolded]:
    """Fold until a whole pass changes nothing; then the norms that are left, with their reasons."""
    while True:
        left, changed = _fold_norms(gm)
        if not changed and not _fold_constants(gm):
            return left


def _fold_norms(gm: fx.GraphModule) -> tuple[list[Unfolded], bool]:
    """One pass over the batch norms: those that stay, and whether any was folded."""
    constants = Constants(gm)
    left: list[Unfolded] = []
    changed = False
    for norm in batch_norms(gm):
        if norm.value._erased:  # folded together with another
            continue
        try:
            _plan(norm_candidate(norm, constants), constants).apply(gm)
            changed = True
        except NotFoldable as error:
            left.append(Unfolded(norm.where, str(error)))
    return left, changed


def _fold_constants(gm: fx.GraphModule) -> bool:
    """One pass over the other constant maps; whether any was folded. They are no norms, so they are not reported."""
    constants = Constants(gm)
    changed = False
    for candidate in constant_candidates(gm, constants):
        try:
            plan = _plan(candidate, constants)
        except NotFoldable:
            continue
        if not plan.copies_shared():
            plan.apply(gm)
            changed = True
    return changed


def _plan(candidate: Candidate, constants: Constants) -> Plan:
    """The first plan that folds candidate. Raises NotFoldable with all the reasons when there is none."""
    search = Search(_INTO_PRODUCER, _INTO_CONSUMERS, constants)
    value, source, affine = candidate.value, candidate.source, candidate.affine
    reasons = []
    try:
        return search.into_producer(value, source, affine, candidate.call)
    except NotFoldable as error:
        reasons.append(f"before it, {error}")
    try:
        return search.into_consumers(value, source, affine)
    except NotFoldable as error:
        reasons.append(f"after it, {error}")
    try:
        return into_sibling(candidate, constants)
    except NotFoldable as error:
        if is_summed(candidate):
            reasons.append(f"beside it, {error}")
    raise NotFoldable("; ".join(reasons))


def _drop_no_ops(gm: fx.GraphModule) -> None:
    """Remove slices that take everything (x[:, 1:] makes one for its first axis), x + 0, x * 1, and second readings.

    Rules take it that an output of a call has one getitem node: who reads that node reads the output.
    """
    readings: dict[tuple[object, object], fx.Node] = {}
    for node in list(gm.graph.nodes):
        if is_call(node, operator.getitem):
            same = readings.setdefault((node.args[0], node.args[1]), node)
            if same is not node:
                node.replace_all_uses_with(same)
                gm.graph.erase_node(node)
            continue
        if not is_call(node, aten.slice.Tensor, *ELEMENTWISE):
            continue
        values = arguments(node)
        source = values["self"]
        if node.target is aten.slice.Tensor:
            idle = _takes_everything(values)
        else:
            other = values.get("other")
            idle = isinstance(other, (int, float)) and other == _NEUTRAL.get(node.target)
        # An output that is nothing but an input is an odd graph: leave the call in between.
        if not idle or not is_tensor(source) or (source.op == "placeholder" and _is_output(node)):
            continue
        if same_shape(source, node) and dtype_of(source) == dtype_of(node):
            node.replace_all_uses_with(source)
            gm.graph.erase_node(node)


def _takes_everything(values: Mapping[str, Any]) -> bool:
    """Whether a slice does so at every size. Shapes alone do not tell: x[:, :20] of an example with 10 steps has the
    example's symbolic size, by an assumption that only this removal would make true."""
    source = values["self"]
    if values["step"] != 1 or not is_tensor(source):
        return False
    if isinstance(source.meta["val"].shape[values["dim"]], int):
        return True  # a fixed size, which same_shape compares
    return values["start"] in (None, 0) and (values["end"] is None or values["end"] == _TO_THE_END)


_TO_THE_END = 2**63 - 1
"""What torch writes for the end of x[:, 1:]."""


def _is_output(node: fx.Node) -> bool:
    return any(user.op == "output" for user in node.users)


def _remove_unread_tensors(gm: fx.GraphModule) -> None:
    """Delete the parameters and buffers of gm that no get_attr node names."""
    read = {str(node.target) for node in gm.graph.find_nodes(op="get_attr")}
    for name in [name for name, _ in (*gm.named_parameters(), *gm.named_buffers())]:
        # A subgraph is read by the path of its module: then all that it holds is.
        paths = (name[:end] for end, letter in enumerate(f"{name}.") if letter == ".")
        if not any(path in read for path in paths):
            owner, _, leaf = name.rpartition(".")
            delattr(gm.get_submodule(owner), leaf)
