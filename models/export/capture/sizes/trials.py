"""Run the network and its captured graph at chosen sizes: does the graph answer there as the network does?

Only asked where an assumption of the capture does not hold, and at the edges of what it allows. Both run in float32
on the same numbers, where a right graph calls the same kernels and agrees to the last bit.
"""

import enum
import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from foldserve.models.export.network.difference import difference
from foldserve.models.export.network.example.dynamic_axes import ROWS
from foldserve.models.export.network.example.example import Example
from foldserve.models.export.network.sampling.random_inputs import random_inputs
from foldserve.models.export.process.suppress_output import suppress_output

# A graph that took another branch is off by far more; kernels may differ where a norm was spelled out.
_TOLERANCE = 1e-5
# So much more than on the example's own sizes it may be elsewhere, and there so much at all.
_FACTOR = 10.0
_MOST_OWN_DIFFERENCE = 1e-3
# Beyond all three a size is not tried: attention needs memory for the square of a length.
_TIMES_THE_EXAMPLE = 4
_CHEAP_SIZE = 2048
_CHEAP_ELEMENTS = 2**17


Eager = Callable[[Sequence[Tensor]], tuple[Tensor, ...] | None]
"""A network on flat inputs, as eager_runner makes it."""


class Verdict(enum.Enum):
    """RIGHT: both answer alike. REFUSED: the network itself gives no answer. WRONG: the graph gives another one, or
    none. UNTRIED: too large to be run here.
    """

    RIGHT = "right"
    REFUSED = "refused"
    WRONG = "wrong"
    UNTRIED = "untried"


class Trials:
    """The runs of one network and its graph, each made once. graph_module takes flat inputs."""

    def __init__(self, eager: Eager, graph_module: Callable[..., Any], example: Example) -> None:
        self._eager = eager
        self._graph_module = graph_module
        self._example = example
        self._known: dict[tuple[tuple[str, int], ...], Verdict] = {}

    def affordable(self, sizes: Mapping[str, int]) -> bool:
        """Whether inputs of these sizes are small, or not much larger than the example."""
        elements = own_elements = 0
        largest = own_largest = 1
        for tensor, axes in zip(self._example.tensors, self._example.axes, strict=True):
            count = 1
            for axis, own in enumerate(tensor.shape):
                size = sizes.get(axes.get(axis, ""), own)
                count *= size
                if axis in axes:
                    largest, own_largest = max(largest, size), max(own_largest, own)
            elements, own_elements = elements + count, own_elements + tensor.numel()
        return elements <= max(_CHEAP_ELEMENTS, _TIMES_THE_EXAMPLE * own_elements) and largest <= max(
            _CHEAP_SIZE, _TIMES_THE_EXAMPLE * own_largest
        )

    def right(self) -> list[dict[str, int]]:
        """The sizes, by name, at which the graph has answered as the network does."""
        return [dict(key) for key, verdict in self._known.items() if verdict is Verdict.RIGHT]

    def verdict(self, sizes: Mapping[str, int]) -> Verdict:
        """What comes of inputs drawn like the example with these sizes, by name; "rows" is one of them."""
        key = tuple(sorted(sizes.items()))
        if key not in self._known:
            self._known[key] = self._try(sizes) if self.affordable(sizes) else Verdict.UNTRIED
        return self._known[key]

    @functools.cached_property
    def comparable(self) -> bool:
        """Whether the two agree on the example's own sizes; where not, parity.py names the fault."""
        return self._own_difference <= _MOST_OWN_DIFFERENCE

    @functools.cached_property
    def _own_difference(self) -> float:
        off = self._difference(random_inputs(self._example, self._example.rows, seed=101))
        return math.inf if off is None else off

    def _try(self, sizes: Mapping[str, int]) -> Verdict:
        inputs = random_inputs(self._example, sizes.get(ROWS, self._example.rows), seed=101, sizes=sizes)
        off = self._difference(inputs)
        if off is None:
            return Verdict.REFUSED
        return Verdict.RIGHT if off <= max(_TOLERANCE, _FACTOR * self._own_difference) else Verdict.WRONG

    def _difference(self, inputs: tuple[Tensor, ...]) -> float | None:
        """How far the graph is off, relative; None where the network has no answer, infinite where only it has."""
        wanted = self._eager(inputs)
        if wanted is None:
            return None
        try:
            with suppress_output(), torch.no_grad():  # fx prints what fails in a graph
                answer = self._graph_module(*(tensor.clone() for tensor in inputs))
            got = [leaf for leaf in pytree.tree_leaves(answer) if isinstance(leaf, Tensor)]
            return max(difference(mine, theirs).max_rel for mine, theirs in zip(got, wanted, strict=True))
        except Exception:  # whatever it is, the graph has no answer where the network has one
            return math.inf


def eager_runner(call: Callable[[Sequence[Tensor]], Any]) -> Eager:
    """The flat outputs of call; None where the network raises, or has no answer but "not a number", as a mean of
    nothing.
    """

    def answer(inputs: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outputs = call([tensor.clone() for tensor in inputs])
        except Exception:  # the network does not take these sizes, so no file has to
            return None
        tensors = tuple(leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor))
        return None if any(bool(t.isnan().any()) for t in tensors if t.is_floating_point()) else tensors

    return answer
