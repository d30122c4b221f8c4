"""What the eager network answers, in float64, on the inputs that every file is compared on.

The cases are the example itself and fresh random inputs of 1, 2 and 7 rows and of the largest bucket; a network
with further dynamic axes gets one more case with other sizes. Each case also holds how far the float32 eager
network is off by itself, from which the tolerance of verify.py comes.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from models.errors import BadExample
from models.export.copying import double_copy
from models.export.difference import Difference, difference
from models.export.example import ROWS, Example
from models.export.float64_mode import float64_arithmetic, widened
from models.export.sampling import random_inputs

# One row, where broadcasting and squeeze go wrong; an even and an odd batch, neither a usual bucket.
ROW_COUNTS = (1, 2, 7)
REFERENCE_ROWS = 7


@dataclass(frozen=True)
class Case:
    """One batch: the inputs as served, the float64 eager outputs, and float32 eager's own error per output."""

    inputs: tuple[Tensor, ...]
    wanted: tuple[Tensor, ...]
    own_error: tuple[Difference, ...]
    fresh: bool

    @property
    def rows(self) -> int:
        return self.inputs[0].shape[0]


class EagerReference:
    """The user's network, run eagerly in float64 and in float32 on flat inputs. Owns the float64 copy."""

    def __init__(self, module: nn.Module, example: Example) -> None:
        """module: the eval copy in float32 (copying.py); only read."""
        self._module = module
        self._double = double_copy(module)
        self._example = example

    def run_float64(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The flat outputs in float64 (integers stay). Raises: what the network raises."""
        with float64_arithmetic(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return tuple(pytree.tree_leaves(self._example.call(self._double, widened(inputs))))

    def run_float32(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The flat outputs as the user's own program computes them."""
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return tuple(pytree.tree_leaves(self._example.call(self._module, [t.clone() for t in inputs])))

    def case(self, inputs: tuple[Tensor, ...], *, fresh: bool) -> Case:
        """Run inputs. Raises: BadExample when the network fails or answers with another number of rows."""
        rows = inputs[0].shape[0]
        try:
            wanted = self.run_float64([t.clone() for t in inputs])
            plain = self.run_float32(inputs)
        except Exception as error:
            shapes = [tuple(t.shape) for t in inputs]
            raise BadExample(
                f"the eager network fails on inputs drawn like its example, with the shapes {shapes}: "
                f"{type(error).__name__}: {error}. It must take every number of rows from 1 up, and every value in "
                "the range that the example shows; give an example that shows the valid range."
            ) from error
        for index, tensor in enumerate(wanted):
            if tensor.dim() == 0 or tensor.shape[0] != rows:
                raise BadExample(
                    f"for {rows} rows the eager network answers with the shape {tuple(tensor.shape)} as output "
                    f"{index}; expected {rows} in dim 0. A squeeze() without a dim does this at one row: name the dim."
                )
        errors = tuple(difference(g, w) for g, w in zip(plain, wanted, strict=True))
        return Case(inputs, wanted, errors, fresh)

    def cases(self, max_batch_size: int, sizes: Mapping[str, int] | None) -> tuple[Case, ...]:
        """The example, then fresh inputs of each row count, then other sizes of the dynamic axes (if any work)."""
        cases = [self.case(self._example.tensors, fresh=False)]
        for rows in sorted({*ROW_COUNTS, max_batch_size}):
            cases.append(self.case(random_inputs(self._example, rows, seed=rows), fresh=True))
        if sizes:
            cases.append(self.case(random_inputs(self._example, 2, seed=101, sizes=sizes), fresh=True))
        return tuple(cases)

    def other_sizes(self) -> dict[str, int] | None:
        """Sizes of the dynamic axes, other than the example's, that the eager network accepts; None if it has none.

        A network may take only multiples (of its strides, say), so the double is tried first.
        """
        own = {
            label: tensor.shape[axis]
            for tensor, axes in zip(self._example.tensors, self._example.axes, strict=True)
            for axis, label in axes.items()
            if label != ROWS
        }
        if not own:
            return None
        for change in (lambda n: 2 * n, lambda n: n + 1, lambda n: n - 1, lambda n: n // 2):
            sizes = {label: change(size) for label, size in own.items()}
            if min(sizes.values()) < 1:
                continue
            try:
                self.run_float32(random_inputs(self._example, 2, seed=101, sizes=sizes))
            except Exception:  # the eager network does not take this size, so nothing has to be right there
                continue
            return sizes
        return None
