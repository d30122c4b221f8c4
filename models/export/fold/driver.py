"""The order of work: constants first, then every norm, again until nothing changes, then the report.

Owns the edited graph while it runs. Each norm is tried up (into what makes its input), then down (into all that read
its output), then beside (into a convolution that is added to it). One more pass is needed after each success, because a
fold can open the way for a neighbour: conv, norm, pool, norm.
"""

import torch
from torch import fx

from models.export.fold.candidates import Candidate, norm_candidate
from models.export.fold.constants import Constants
from models.export.fold.down import DOWN_RULES
from models.export.fold.graph import aten, is_call, nested_graphs, same_shape
from models.export.fold.norms import batch_norms
from models.export.fold.plan import Plan, Refused
from models.export.fold.report import FoldReport, Left
from models.export.fold.rules import table
from models.export.fold.search import Search
from models.export.fold.up import UP_RULES

_UP = table(UP_RULES)
_DOWN = table(DOWN_RULES)


def fold_batch_norms(gm: fx.GraphModule) -> FoldReport:
    """Fold every foldable batch norm of gm into other weights, in place, and say which stay and why.

    gm is an unlifted graph of aten calls (torch.export, run_decompositions({}), module()): parameters and buffers are
    get_attr nodes, node.meta["val"] has the symbolic shapes. Any floating dtype. New weights are new buffers; existing
    tensors are never written to, and those that nothing reads any more are removed from gm. Folded weights are computed
    in float64 and rounded once. A second call changes nothing.
    """
    with torch.no_grad():
        gm.graph.eliminate_dead_code()
        _drop_whole_slices(gm)
        found = len(batch_norms(gm)) + sum(len(batch_norms(inner)) for _, inner in nested_graphs(gm))
        Constants(gm).materialise()
        left = _fold_until_stable(gm)
        gm.graph.eliminate_dead_code()
        _remove_unread_tensors(gm)
        gm.graph.lint()
        gm.recompile()
    for name, inner in nested_graphs(gm):
        left += [
            Left(norm.where, f"it is inside {name}, a branch of control flow") for norm in batch_norms(inner)
        ]
    return FoldReport(found, found - len(left), tuple(left))


def _fold_until_stable(gm: fx.GraphModule) -> list[Left]:
    """Fold norms until a whole pass changes nothing; then those that are left, with their reasons."""
    while True:
        constants = Constants(gm)
        left: list[Left] = []
        changed = False
        for norm in batch_norms(gm):
            if norm.value._erased:
                continue
            try:
                candidate = norm_candidate(norm, constants)
                _plan(candidate, constants).apply(gm)
                changed = True
            except Refused as refused:
                left.append(Left(norm.where, str(refused)))
        if not changed:
            return left


def _plan(candidate: Candidate, constants: Constants) -> Plan:
    """The first plan that folds candidate. Raises Refused with all the reasons when there is none."""
    search = Search(_UP, _DOWN, constants)
    value, source, affine = candidate.value, candidate.source, candidate.affine
    reasons = []
    try:
        return search.up(value, source, affine, candidate.call)
    except Refused as refused:
        reasons.append(f"before it, {refused}")
    try:
        return search.down(value, source, affine)
    except Refused as refused:
        reasons.append(f"after it, {refused}")
    raise Refused("; ".join(reasons))


def _drop_whole_slices(gm: fx.GraphModule) -> None:
    """Remove slices that take everything (x[:, 1:] makes one for its first axis)."""
    for node in gm.graph.find_nodes(op="call_function", target=aten.slice.Tensor):
        source = node.args[0]
        if isinstance(source, fx.Node) and is_call(node) and same_shape(source, node):
            step = node.args[4] if len(node.args) > 4 else node.kwargs.get("step", 1)
            if step == 1:
                node.replace_all_uses_with(source)
                gm.graph.erase_node(node)


def _remove_unread_tensors(gm: fx.GraphModule) -> None:
    """Delete the parameters and buffers of gm that no get_attr node names."""
    read = {str(node.target) for node in gm.graph.find_nodes(op="get_attr")}
    for name in [name for name, _ in (*gm.named_parameters(), *gm.named_buffers())]:
        inside_subgraph = any(name.startswith(f"{target}.") for target in read)
        if name not in read and not inside_subgraph:
            owner, _, leaf = name.rpartition(".")
            delattr(gm.get_submodule(owner), leaf)
