"""What is there to fold: batch norms first, then other constant maps along an axis.

A candidate is a value that is affine(source) whatever the input: an evaluating batch norm, or an addition,
multiplication, subtraction or division by a constant that varies along an axis (a frozen batch norm,
LayerScale). The second kind is only an optimisation: it is not counted or reported as a norm.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from foldserve.models.export.fold.affine import Affine
from foldserve.models.export.fold.constants import Constants
from foldserve.models.export.fold.graph import is_call, is_float, readers
from foldserve.models.export.fold.norms import Norm, affine_of, why_never
from foldserve.models.export.fold.plan import NotFoldable
from foldserve.models.export.fold.rules.elementwise import ELEMENTWISE, own_map


@dataclass(frozen=True, eq=False)
class Candidate:
    """value = affine(source); call = the node that reads source, which makes value unless it is one of a chain."""

    call: fx.Node
    value: fx.Node
    source: fx.Node
    affine: Affine


def norm_candidate(norm: Norm, constants: Constants) -> Candidate:
    """norm as a candidate. Raises NotFoldable with the reason when it never is one."""
    reason = why_never(norm, constants)
    if reason is not None:
        raise NotFoldable(reason)
    return Candidate(norm.call, norm.value, norm.source, affine_of(norm, constants))


def constant_candidates(gm: fx.GraphModule, constants: Constants) -> Iterator[Candidate]:
    """The elementwise calls of gm that are a constant map varying along one axis, in the order of execution.

    Each is read from the graph when it is asked for: folding one may have changed the next.
    """
    for node in list(gm.graph.nodes):
        if node._erased or not is_call(node, *ELEMENTWISE) or not is_float(node):
            continue
        own = None if constants.is_constant(node) else own_map(node, constants)
        if own is None or len(own[1].axes) != 1:
            continue
        whole = _with_those_before(Candidate(node, node, *own), constants)
        yield whole
        if whole.call is not node and not node._erased:
            yield Candidate(node, node, *own)


def _with_those_before(last: Candidate, constants: Constants) -> Candidate:
    """The map of last and of the elementwise calls that feed it alone: a frozen batch norm is x * w + b."""
    whole = last
    while is_call(whole.source, *ELEMENTWISE) and readers(whole.source) == [whole.call]:
        own = own_map(whole.source, constants)
        if own is None:
            break
        whole = Candidate(whole.source, last.value, own[0], whole.affine.after(own[1]))
    return whole
