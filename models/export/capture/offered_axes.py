"""Axes that nobody asked for: offered to the network, and fixed where it does not take another size of them.

Where rows belong together (row_modes.py), dim 0 of an input is an axis like others: it may vary, as the nodes of a
graph do, or count something fixed, as the channels of a picture without rows.
"""

import dataclasses
from collections.abc import Sequence, Set

import torch
from torch import Tensor

from foldserve.models.errors import NotCapturable
from foldserve.models.export.capture.capture import CapturedGraph, capture
from foldserve.models.export.capture.sizes.sizes import Narrowed
from foldserve.models.export.network.example.example import Example
from foldserve.models.export.network.module_copy import EvalCopy
from foldserve.models.export.process.running import plain_ways


def capture_with_offers(
    network: EvalCopy, example: Example, output_names: tuple[str, ...] | None
) -> tuple[CapturedGraph, Example]:
    """The graph, and the example that it answers to: axes that were only offered are fixed where they must be.

    Raises: as capture().
    """
    if not example.offered:
        return capture(network, example, output_names), example
    try:
        return capture(network, example, output_names), example
    except NotCapturable as error:
        own = fixed(example, example.offered)
        captured = capture(network, own, output_names)
        told = tuple(
            Narrowed(label, f"it is fixed at its size in the example: {error}") for label in example.offered
        )
        sizes = dataclasses.replace(captured.sizes, narrowed=(*captured.sizes.narrowed, *told))
        return dataclasses.replace(captured, sizes=sizes), own


def without_refused(network: EvalCopy, example: Example) -> Example:
    """The example with each axis fixed that was only offered and of which the network takes no other size.

    Of a picture without rows, say, dim 0 is its channels.
    """
    if not example.offered:
        return example
    own = fixed(example, example.offered)
    for label in sorted(example.offered):
        try:
            with plain_ways(network.converted):
                example.call(network.runs.module(), _doubled(own, example.axes, label))
        except Exception:  # the network takes no other size, or that of another axis is bound to it
            example = fixed(example, {label})
    return example


def fixed(example: Example, labels: Set[str]) -> Example:
    """The example with the axes of these labels fixed at the sizes that the user gave."""
    tensors = tuple(
        _narrow(tensor, axes, own, labels)
        for tensor, axes, own in zip(example.tensors, example.axes, example.own_shapes, strict=True)
    )
    axes = tuple({a: label for a, label in mine.items() if label not in labels} for mine in example.axes)
    return dataclasses.replace(example, tensors=tensors, axes=axes, offered=example.offered - labels)


def _narrow(tensor: Tensor, axes: dict[int, str], own: tuple[int, ...], labels: Set[str]) -> Tensor:
    """A size of 1 was doubled for the capture: example.py."""
    for axis, label in axes.items():
        if label in labels:
            tensor = tensor.narrow(axis, 0, own[axis])
    return tensor.contiguous()


def _doubled(example: Example, every: Sequence[dict[int, str]], label: str) -> list[Tensor]:
    wide = []
    for tensor, axes in zip(example.tensors, every, strict=True):
        for axis, name in axes.items():
            if name == label:
                tensor = torch.cat([tensor, tensor], dim=axis)
        wide.append(tensor)
    return wide
