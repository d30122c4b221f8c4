"""Fold batch norms into the weights around them, on a captured graph, exactly or not at all.

    driver      the order of work and the report          candidates, norms   what there is to fold
    search      up, down: which path carries the map      rules               the form of a rule
    up, down    calls with weights                        plan                edits, whole or not at all
    affine      y = scale * x + shift                     constants           what is constant; rounding once

A batch norm that evaluates is y = a * x + c per channel. The one idea: carry that map along the edges of the
graph, past every operation that commutes with it, until something with weights can take it. docs/folding.md
has the proofs.
"""

from models.export.fold.driver import fold_batch_norms
from models.export.fold.report import FoldReport, Left

__all__ = ["FoldReport", "Left", "fold_batch_norms"]
