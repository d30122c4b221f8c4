"""Fold batch norms into the weights around them, on a captured graph, exactly or not at all.

    driver      the order of work and the report          candidates, norms   what there is to fold
    search      into the producer, or the consumers       rule                the form of a rule
    affine      y = scale * x + shift                     plan                edits, whole or not at all
    constants   what is constant; rounding once           graph               questions about a captured graph

rules/: into_producer, into_consumers (calls with weights), recurrent, into_sibling, commuting, pads, index_maps
with views, joins, elementwise. Each says in its header what holds when, and why.

A batch norm that evaluates is y = a * x + c per channel. The one idea: carry that map along the edges of the
graph, past every operation that commutes with it, until something with weights can take it. docs/folding.md
has the proofs.
"""

from foldserve.models.export.fold.driver import fold_batch_norms
from foldserve.models.export.fold.report import FoldReport, Unfolded

__all__ = ["FoldReport", "Unfolded", "fold_batch_norms"]
