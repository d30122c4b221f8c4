"""Fold batch norms into the weights around them, on a captured graph, exactly or not at all.

    driver      the order of work and the report          candidates, norms   what there is to fold
    search      up, down: which path carries the map      rules               the form of a rule
    affine      y = scale * x + shift                     plan                edits, whole or not at all
    constants   what is constant; rounding once           graph               questions about a captured graph

The rules: up, down (calls with weights), recurrent, parallel (beside), commuting, pads, index_maps with views,
joins, elementwise. Each says in its header what holds when, and why.

A batch norm that evaluates is y = a * x + c per channel. The one idea: carry that map along the edges of the
graph, past every operation that commutes with it, until something with weights can take it. docs/folding.md
has the proofs.
"""

from foldserve.models.export.fold.driver import fold_batch_norms
from foldserve.models.export.fold.report import FoldReport, Unfolded

__all__ = ["FoldReport", "Unfolded", "fold_batch_norms"]
