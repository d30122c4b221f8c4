"""How the rows of a network belong together: whether a server may put rows of many requests into one batch.

independent   dim 0 of every input counts rows, and the answer for a row is its own; requests share batches
together      an answer belongs to all that was sent with it: norms with the statistics of the batch, one number for
              the whole, graphs, networks without a dim of rows; each request is run by itself, in the network's shapes
"""

import dataclasses
from collections.abc import Sequence, Set

import torch
from torch import Tensor

from foldserve.models.errors import BadExample, NotCapturable
from foldserve.models.export.capture import CapturedGraph, capture
from foldserve.models.export.copying import EvalCopy
from foldserve.models.export.example import Example
from foldserve.models.export.reference import ROW_COUNTS
from foldserve.models.export.running import plain_ways
from foldserve.models.export.settling import own_sizes
from foldserve.models.export.sizes import Narrowed, Sizes
from foldserve.models.export.ways import TOGETHER, WAYS


def check_rows_word(word: object, max_batch_size: object) -> bool:
    """Whether the rows belong together. Raises: BadExample for another word, or a batch size that contradicts it."""
    if word not in WAYS:
        raise BadExample(f"rows is {word!r}; expected one of {', '.join(WAYS)}")
    if word == TOGETHER and max_batch_size not in (None, 0):
        raise BadExample(
            f"max_batch_size is {max_batch_size!r} and rows is {TOGETHER!r}, of which a server runs one request at a "
            "time; expected one of the two: leave max_batch_size out"
        )
    return word == TOGETHER


def sizes_to_prove(sizes: Sizes, example: Example) -> list[dict[str, int]]:
    """Sizes by name to compare at, beside the example's; where rows belong together, the usual numbers of them too."""
    own = own_sizes(example)
    points = list(sizes.edges(own))
    if example.together:
        points = [*sizes.with_counts(own, example.leading, ROW_COUNTS), *points]
    return [dict(point) for point in dict.fromkeys(tuple(point.items()) for point in points)]


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
