"""How far two tensors are apart: the measure of service/artifact/difference.py, which the server judges by too."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from foldserve.service.artifact import difference as measure
from foldserve.service.artifact.difference import NONE, Difference, Scale

__all__ = ["NONE", "Difference", "Scale", "difference", "scale_of"]


def scale_of(wanted: Sequence[Tensor], axes: Sequence[int]) -> Scale:
    """The scale of an output, from its values in several batches. axes: those of fixed size, other than the rows."""
    return measure.scale_of([_array(tensor) for tensor in wanted], axes)


def difference(got: Tensor, want: Tensor, scale: Scale | None = None) -> Difference:
    """The difference between an answer and the wanted one."""
    return measure.difference(_array(got), _array(want), scale)


def _array(tensor: Tensor) -> np.ndarray:
    """Its values; floats as float64, which holds every one of theirs, and which numpy has of bfloat16."""
    kept = tensor.detach().double() if tensor.is_floating_point() else tensor.detach()
    array: np.ndarray = kept.cpu().numpy()
    return array
