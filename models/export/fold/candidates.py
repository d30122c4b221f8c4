"""What is there to fold: batch norms first, then other constant maps along an axis.

A candidate is a value that is affine(source) whatever the input: an evaluating batch norm, or an addition,
multiplication, subtraction or division by a constant that varies along an axis (a frozen batch norm, LayerScale). The
second kind is only an optimisation: it is not counted or reported as a norm.
"""

from dataclasses import dataclass

from torch import fx

from models.export.fold.affine import Affine
from models.export.fold.constants import Constants
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
