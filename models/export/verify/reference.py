"""What the eager network answers, in float64, on the inputs that every file is compared on.

The cases are the example itself and fresh random inputs of 1, 2 and 7 rows and of the largest bucket; a
network with further dynamic axes gets more cases with other sizes. Where rows belong together, the fresh inputs have
the example's sizes, and 1, 2 and 7 rows are tried of networks that take them. Each case also holds what the float32
eager network answers: how far that is off is what the tolerances of tolerance.py come from.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from foldserve.models.errors import BadExample, NotCapturable
from foldserve.models.export.capture.outputs import Outputs
from foldserve.models.export.capture.sizes.settling import own_sizes
from foldserve.models.export.capture.sizes.sizes import Sizes
from foldserve.models.export.network.difference import Difference, difference
from foldserve.models.export.network.example.example import Example
from foldserve.models.export.network.example.row_modes import SERVE_TOGETHER
from foldserve.models.export.network.fresh import FreshRuns
from foldserve.models.export.network.module_copy import EvalCopy, double_copy
from foldserve.models.export.network.refusals import reason
from foldserve.models.export.network.sampling.random_inputs import random_inputs, unproved_values
from foldserve.models.export.network.sampling.source import fresh_inputs, is_finite
from foldserve.models.export.process.float64_mode import float64_arithmetic, widened
from foldserve.models.export.process.running import plain_ways

# One row, where broadcasting and squeeze go wrong; an even and an odd batch, neither a usual bucket.
ROW_COUNTS = (1, 2, 7)
REFERENCE_ROWS = 7

# How much further float32 eager may be off in a large batch than in small ones: kernels sum in another order.
_LARGE_BATCH_TOLERANCE = 1e-4
_LARGE_BATCH_FACTOR = 20.0


@dataclass(frozen=True)
class ParityCase:
    """One batch: the inputs as served, and what eager answers in float64 (wanted) and in float32 (plain).

    rows: how many. fresh: whether the inputs were drawn. large: whether it is the largest batch, of rows that other
    cases have too. reference: whether this is the case that reference.npz holds.
    settled: per output of integers or booleans, which elements are beyond doubt (settled.py); all, where
    it has no entry.
    """

    inputs: tuple[Tensor, ...]
    wanted: tuple[Tensor, ...]
    plain: tuple[Tensor, ...]
    rows: int
    fresh: bool
    large: bool = False
    reference: bool = False
    settled: Mapping[int, Tensor] = field(default_factory=dict)

    @property
    def own_error(self) -> tuple[Difference, ...]:
        """How far float32 eager is off by itself, per output."""
        return tuple(difference(g, w) for g, w in zip(self.plain, self.wanted, strict=True))


class EagerReference:
    """The user's network, run eagerly in float64 and in float32 on flat inputs. Owns the float64 copy."""

    def __init__(self, network: EvalCopy, example: Example, outputs: Outputs) -> None:
        """network: the eval copy in float32; only read. outputs: what of its answers is served."""
        self._network = network
        self._outputs = outputs
        self._double = double_copy(network.module)
        self._double_runs = FreshRuns(self._double)
        self._example = example
        self._finite: tuple[bool, ...] = ()  # which outputs are, on the example; known after cases()

    def run_float64(
        self, inputs: Sequence[Tensor], weights: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, ...]:
        """The flat outputs in float64 (integers stay). weights: what to run with in the place of each weight.

        Raises: what the network raises.
        """
        if weights is None:
            module = self._double_runs.module()
        else:
            module = copy.deepcopy(self._double)  # a fresh copy shares its weights
            with torch.no_grad():
                for tensor in (*module.parameters(), *module.buffers()):
                    tensor.copy_(weights(tensor))
        return self._run_float64(module, inputs)

    def run_float64_after(
        self, earlier: Sequence[Sequence[Tensor]], inputs: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """The same of one network that has answered others before. Raises: what the network raises."""
        module = self._double_runs.module()
        for others in earlier:
            self._run_float64(module, others)
        return self._run_float64(module, inputs)

    def _run_float64(self, module: nn.Module, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with plain_ways(), float64_arithmetic():
            return self._outputs.read(self._example.call(module, widened(inputs)))

    def run_part_float64(self, part: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The flat outputs, in float64, of a submodule that returns what the network does. Raises: what it raises."""
        module = self._double_runs.module().get_submodule(part)
        with plain_ways(), float64_arithmetic():
            return self._outputs.read(module(*inputs))

    def run_float32(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The flat outputs as the user's own program computes them."""
        with plain_ways(self._network.converted):
            module = self._network.runs.module()
            return self._outputs.read(self._example.call(module, [t.clone() for t in inputs]))

    def case(self, inputs: tuple[Tensor, ...], *, fresh: bool, reference: bool = False) -> ParityCase:
        """Run inputs. Raises: BadExample when the network fails or answers with another number of rows."""
        rows = self._example.rows_of(inputs)
        every_number = "" if self._example.together else "every number of rows from 1 up, and "
        try:
            wanted = self.run_float64([t.clone() for t in inputs])
            plain = self.run_float32(inputs)
        except Exception as error:
            shapes = [tuple(t.shape) for t in inputs]
            raise BadExample(
                f"the eager network fails on inputs drawn like its example, with the shapes {shapes}: "
                f"{reason(error)}. It must take {every_number}every "
                "value in the range that the example shows; give an example that shows the valid range."
                f"{'' if self._example.together else ' ' + SERVE_TOGETHER}"
            ) from error
        for index, tensor in enumerate(() if self._example.together else wanted):
            if tensor.dim() == 0 or tensor.shape[0] != rows:
                raise BadExample(
                    f"for {rows} rows the eager network answers with the shape {tuple(tensor.shape)} as "
                    f"output {index}; expected {rows} in dim 0. A squeeze() without a dim does this at one "
                    f"row: name the dim. {SERVE_TOGETHER}"
                )
        return ParityCase(inputs, wanted, plain, rows, fresh, reference=reference)

    def cases(self, edges: Sequence[Mapping[str, int]] = ()) -> tuple[ParityCase, ...]:
        """The example, fresh inputs of each row count, and other sizes of the dynamic axes, those that work.

        edges: sizes by name of axis (sizes.py).
        Raises: as case().
        """
        example = self.case(self._example.tensors, fresh=False)
        self._finite = tuple(is_finite(tensor) for tensor in example.wanted)
        fresh = [
            self.case(fresh_inputs(self._example, rows), fresh=True, reference=rows == REFERENCE_ROWS)
            for rows in ROW_COUNTS
        ]
        other = [self.case(self._of_sizes(one), fresh=True) for one in edges if self._accepts(one)]
        return (example, *fresh, *other)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the cases do not show, and how the user can mend it. Call after cases()."""
        told = [*unproved_values(self._example)]
        if self._example.refused is not None:
            told.append(self._example.refused)
        never = [str(index) for index, finite in enumerate(self._finite) if not finite]
        if never:
            told.append(
                "the eager network answers its own example with values that are not finite, in output "
                f"{', '.join(never)}: of such values only the places are compared."
            )
        return tuple(told)

    def large_case(self, cases: Sequence[ParityCase], rows: int) -> ParityCase:
        """A batch of the fresh rows of cases, again and again, so that float64 need not run again.

        Float64 convolutions are slow, and a row's answer does not depend on its batch: verify.check_rows says
        so of small batches, and here the float32 eager network of this large one.
        Raises: BadExample when the network fails; NotCapturable when it answers differently in a large batch.
        """
        fresh = [case for case in cases if case.fresh and self._has_own_sizes(case)]
        inputs = tuple(_repeated(parts, rows) for parts in zip(*(c.inputs for c in fresh), strict=True))
        wanted = tuple(_repeated(parts, rows) for parts in zip(*(c.wanted for c in fresh), strict=True))
        try:
            plain = self.run_float32(inputs)
        except Exception as error:
            raise BadExample(
                f"the eager network fails on a batch of {rows} rows: {reason(error)}. It "
                "must take every number of rows up to max_batch_size; give a smaller one (--max-batch-size)."
            ) from error
        large = ParityCase(inputs, wanted, plain, rows, fresh=True, large=True)
        for index, found in enumerate(large.own_error):
            usual = max(case.own_error[index].max_rel for case in cases)
            if not found.max_rel <= max(_LARGE_BATCH_TOLERANCE, _LARGE_BATCH_FACTOR * usual):
                raise NotCapturable(
                    f"the answer for a row depends on its batch: output {index} differs by "
                    f"{found.max_rel:.1e} relative between a batch of {rows} and one of {max(ROW_COUNTS)} "
                    f"or fewer rows. Each row must be answered by itself. {SERVE_TOGETHER}"
                )
        return large

    def _has_own_sizes(self, case: ParityCase) -> bool:
        """Whether the case has the example's sizes behind the rows: only such rows can be put together."""
        return all(
            t.shape[1:] == e.shape[1:] for t, e in zip(case.inputs, self._example.tensors, strict=True)
        )

    def _of_sizes(self, sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
        return random_inputs(self._example, 2, seed=101, sizes=sizes)

    def _accepts(self, sizes: Mapping[str, int]) -> bool:
        try:
            outputs = self.run_float32(self._of_sizes(sizes))
        except Exception:  # the eager network does not take this size, so nothing has to be right there
            return False
        # A step of a mean or a variance over nothing: no answer that a file could agree with.
        return all(is_finite(t) for t, finite in zip(outputs, self._finite, strict=True) if finite)


def sizes_to_prove(sizes: Sizes, example: Example) -> list[dict[str, int]]:
    """Sizes by name to compare at, beside the example's; where rows belong together, the usual numbers of them too."""
    own = own_sizes(example)
    points = list(sizes.edges(own))
    if example.together:
        points = [*sizes.with_counts(own, example.leading, ROW_COUNTS), *points]
    return [dict(point) for point in dict.fromkeys(tuple(point.items()) for point in points)]


def _repeated(parts: Sequence[Tensor], rows: int) -> Tensor:
    """The rows of parts, one after the other and from the start again, until there are so many."""
    pool = torch.cat(list(parts))
    return pool[torch.arange(rows) % pool.shape[0]]
