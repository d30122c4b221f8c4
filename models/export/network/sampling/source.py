"""What fresh inputs are drawn from: the freest source that the network takes, tried in float32 before anything else.

A valid network is not refused for what was drawn: where it fails on inputs from the ranges that its example shows, or
answers what is not finite where it answers the example in numbers, its inputs are drawn nearer to the example.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from foldserve.models.export.network.example.example import Example, Source
from foldserve.models.export.network.flat import tensors_of
from foldserve.models.export.network.module_copy import EvalCopy
from foldserve.models.export.network.refusals import reason
from foldserve.models.export.network.sampling.random_inputs import random_inputs
from foldserve.models.export.process.running import plain_ways

# Rows: how far their floats stray, in units of the example's spread: far enough that clamps and saturations are met,
# and near enough that the small number under the root of a norm counts.
_SCALES = {1: 3.0, 2: 0.1, 7: 1.0}


def fresh_inputs(example: Example, rows: int) -> tuple[Tensor, ...]:
    """The fresh inputs of so many rows that every file is compared on. rows: one of reference.ROW_COUNTS."""
    return random_inputs(example, rows, seed=rows, scale=_SCALES[rows])


def with_source(network: EvalCopy, example: Example) -> Example:
    """The example with the source from which its fresh inputs are to be drawn, and why from no freer one.

    A network that takes not even the rows of its example keeps the last source: running it later says why.
    """
    finite = _finite(network, example, example.tensors)
    for source in Source:
        problem = _problem(network, example, finite) if source is not Source.ROWS else None
        if problem is None:
            break
        following = list(Source)[list(Source).index(source) + 1]
        refused = (
            f"the network does not take inputs drawn from {source.value} ({problem}), so its proof has only "
            f"{following.value}. Give an example whose rows show all that is valid."
        )
        example = dataclasses.replace(example, source=following, refused=refused)
    return example


def _problem(network: EvalCopy, example: Example, finite: Sequence[bool] | str) -> str | None:
    """Why the network does not take the fresh inputs of the example's source; None where it does.

    finite: what _finite says of the example itself.
    """
    for rows in _SCALES:
        found = _finite(network, example, fresh_inputs(example, rows))
        if isinstance(found, str):
            return found
        if not isinstance(finite, str) and any(
            was and not now for was, now in zip(finite, found, strict=True)
        ):
            return "it answers values that are not finite"
    return None


def _finite(network: EvalCopy, example: Example, inputs: Sequence[Tensor]) -> tuple[bool, ...] | str:
    """Which outputs are finite, or why the network fails."""
    try:
        with plain_ways(network.converted):
            answer = example.call(network.runs.module(), [tensor.clone() for tensor in inputs])
    except Exception as error:
        return reason(error)
    return tuple(is_finite(tensor) for tensor in tensors_of(answer))


def is_finite(tensor: Tensor) -> bool:
    """Whether every value is a number; integers are."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
