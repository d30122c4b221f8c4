"""What is there to fold: batch norms first, then other constant maps along an axis.

A candidate is a value that is affine(source) whatever the input: an evaluating batch norm, or an addition,
multiplication, subtraction or division by a constant that varies along an axis (a frozen batch norm, LayerScale). The
second kind is only an optimisation: it is not counted or reported as a norm.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from models.export.fold.affine import Affine
from models.export.fold.constants import Constants
from models.export.fold.elementwise import ELEMENTWISE, own_map
from models.export.fold.graph import is_call, is_float
from models.export.fold.norms import Norm, affine_of, why_never
from models.export.fold.plan import Refused


@dataclass(frozen=True, eq=False)
class Candidate:
    """value = affine(source), computed by call."""

    call: fx.Node
    value: fx.Node
    source: fx.Node
    affine: Affine


def norm_candidate(norm: Norm, constants: Constants) -> Candidate:
    """norm as a candidate. Raises Refused with the reason when it never is one."""
    reason = why_never(norm, constants)
    if reason is not None:
        raise Refused(reason)
    return Candidate(norm.call, norm.value, norm.source, affine_of(norm, constants))


def constant_candidates(gm: fx.GraphModule, constants: Constants) -> Iterator[Candidate]:
    """The elementwise calls of gm that are a constant map varying along one axis, in the order of execution.

    Each is read from the graph when it is asked for: folding one may have changed the next.
    """
    for node in list(gm.graph.nodes):
        if node._erased or not is_call(node, *ELEMENTWISE) or not is_float(node):
            continue
        own = None if constants.is_constant(node) else own_map(node, constants)
        if own is not None and len(own[1].axes) == 1:
            yield Candidate(node, node, *own)
