"""Which elements of an integer or boolean output are settled in a precision: an argmax without a near tie.

Such an output has no small differences: an element is right or wrong, unless float64 itself would answer otherwise for
weights that are rounded a little differently. So the float64 network is run with its weights (in 16 bits its inputs
too) off by some roundings of the precision, several times; elements that answer alike each time are settled, and a file
must answer them alike too. The others may come out either way.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from foldserve.models.export.precision.precision import Precision
from foldserve.models.export.verify.reference import EagerReference, ParityCase

_RUNS = 8
# Roundings of the precision: as many as the tolerances of floats allow for (tolerance.py).
_ROUNDINGS = 20.0
_LOWER_ROUNDINGS = 4.0


def with_settled(
    reference: EagerReference, cases: Sequence[ParityCase], precision: Precision
) -> tuple[ParityCase, ...]:
    """The cases, each told what is settled in it. Nothing is run for a network whose outputs are all floats."""
    return tuple(dataclasses.replace(case, settled=_settled(reference, case, precision)) for case in cases)


def _settled(reference: EagerReference, case: ParityCase, precision: Precision) -> dict[int, Tensor]:
    whole = [index for index, want in enumerate(case.wanted) if not want.is_floating_point()]
    if not whole:
        return {}
    runs = [_run_near(reference, case, precision, seed) for seed in range(_RUNS)]
    return {
        index: torch.stack([run[index] == case.wanted[index] for run in runs]).all(0)
        for index in whole
        if all(run[index].shape == case.wanted[index].shape for run in runs)
    }


def _run_near(
    reference: EagerReference, case: ParityCase, precision: Precision, seed: int
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    size = (_LOWER_ROUNDINGS if precision.is_lower else _ROUNDINGS) * precision.roundoff

    def near(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.clone()
        noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * 2 - 1
        return tensor.double() * (1 + size * noise)

    inputs = [near(t) if precision.is_lower else t.clone() for t in case.inputs]
    return reference.run_float64(inputs, near)
