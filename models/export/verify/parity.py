"""Proof in numbers that the export did not change the answers. Nothing is trusted: the files are run.

1. Rows: a row's answer in a batch is its answer alone; else it could not be batched with other people's rows. Not
   asked where the rows belong together (row_modes.py).
2. The fold: the folded graph, run in float64, against the float64 eager network. Tolerance 1e-10 relative: float64
   carries 2e-16, some thousand roundings make 1e-13; a right fold measures below 1e-12, a wrong one 1e-1, and
   there is nothing in between. Where a network multiplies roundings, 20 times what float64 itself moves when it
   sums in another order (other_order.py) from weights that are rounded the other way, as a fold rounds them again;
   at most 1e-7: from there on the fold would show in a float32 file.
3. The files: TorchScript and ONNX Runtime against float64 eager, with the tolerance of each output (tolerance.py).
4. What outputs cannot show, a fault in a layer that hardly reaches them: check_layers.py.

The measure, also in the manifest: difference.py. The inputs: reference.py.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from foldserve.models.errors import FormNotWritten, NotCapturable, ParityFailed
from foldserve.models.export.network.difference import NONE, Difference, difference
from foldserve.models.export.network.example.row_modes import SERVE_TOGETHER
from foldserve.models.export.precision.precision import Precision
from foldserve.models.export.verify.first_difference import first_difference, first_row_mixing
from foldserve.models.export.verify.float64_graph import float64_values, run_float64
from foldserve.models.export.verify.other_order import OtherOrder
from foldserve.models.export.verify.reference import ROW_COUNTS, EagerReference, ParityCase
from foldserve.models.export.verify.tolerance import (
    LARGEST_TOLERANCE,
    OWN_ERROR_FACTOR,
    Output,
    ill_conditioned,
    refusal,
)
from foldserve.models.export.writers.reasons import reason
from foldserve.service.artifact import manifest

FOLD_TOLERANCE = 1e-10
LARGEST_FOLD_TOLERANCE = 1e-7
ORDER_FACTOR = 20.0
# Rows are compared in float64, where kernels sum in another order for another batch size: as the fold's.
ROW_TOLERANCE = 1e-8

Locate = Callable[[ParityCase], str | None]
"""The place of the first layer of a file that is wrong; asked only on failure."""

Runner = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]


@dataclass(frozen=True)
class OutputParity:
    """How far one output was off, the tolerance that it was held to, and what the figures do not say, if anything."""

    difference: Difference
    tolerance: float
    note: str = ""

    def to_manifest(self) -> manifest.OutputParity:
        found = self.difference
        note = self.note or None
        return manifest.OutputParity(
            max_abs=found.max_abs, max_rel=found.max_rel, tolerance=self.tolerance, note=note
        )


@dataclass(frozen=True)
class Parity:
    """How far one form of the network was off, over the cases tried; figures as in difference.py."""

    outputs: Mapping[str, OutputParity]
    rows: tuple[int, ...]

    @property
    def difference(self) -> Difference:
        """The largest of all outputs."""
        return functools.reduce(Difference.worse, (o.difference for o in self.outputs.values()), NONE)

    @property
    def tolerance(self) -> float:
        """The largest of all outputs."""
        return max((output.tolerance for output in self.outputs.values()), default=0.0)

    def to_manifest(self) -> manifest.FormParity:
        """Of a file: relative to the values, and absolute."""
        outputs = {name: output.to_manifest() for name, output in self.outputs.items()}
        return replace(self.relative_to_manifest(), max_abs=self.difference.max_abs, outputs=outputs)

    def relative_to_manifest(self) -> manifest.FormParity:
        """Of what is compared in float64, whose scale no file has."""
        return manifest.FormParity(
            max_rel=self.difference.max_rel, rows_tried=self.rows, tolerance=self.tolerance
        )


def check_stateless(reference: EagerReference, cases: Sequence[ParityCase]) -> None:
    """Raises: NotCapturable when the network answers the same inputs otherwise after others."""
    small = next(c for c in cases if c.fresh)
    # One that has answered other requests before must answer as one that has not.
    earlier = [[t + 1 if t.is_floating_point() else t for t in small.inputs], small.inputs]
    again_outputs = reference.run_float64_after(earlier, small.inputs)
    for index, (again, before) in enumerate(zip(again_outputs, small.wanted, strict=True)):
        if not difference(again, before).max_rel <= FOLD_TOLERANCE:
            raise NotCapturable(
                f"output {index} of the eager network differs between two runs on the same inputs: forward "
                "keeps state between calls (a counter, numbers of the last request), or draws random numbers "
                "outside of torch. Answers must depend on the inputs alone."
            )


def check_rows(reference: EagerReference, cases: Sequence[ParityCase], graph_module: fx.GraphModule) -> None:
    """Raises: NotCapturable, naming the layer, when a row's answer depends on the other rows of its batch."""
    case = next(c for c in cases if c.fresh and c.rows == ROW_COUNTS[-1])
    for row in (0, case.rows - 1):
        alone = reference.run_float64([t[row : row + 1].clone() for t in case.inputs])
        for index, (single, batch) in enumerate(zip(alone, case.wanted, strict=True)):
            found = difference(batch[row : row + 1], single)
            if found.max_rel > ROW_TOLERANCE:
                place = first_row_mixing(graph_module, case.inputs, ROW_TOLERANCE)
                raise NotCapturable(
                    f"the answer for a row depends on the other rows of its batch: output {index} of row "
                    f"{row} alone and in a batch of {case.rows} differ by {found.max_rel:.1e} "
                    f"relative{f', first at {place}' if place else ''}. The server batches rows of "
                    "different requests. Use running statistics in norms (no training=True, no "
                    "track_running_stats=False), and rows in dim 0; where an input has them in another, name it: "
                    f"dynamic_axes={{'x': {{1: 'rows'}}}}. {SERVE_TOGETHER}"
                )


def check_conditioned(
    outputs: Sequence[Output], precision: Precision, locate: Callable[[float], str | None]
) -> None:
    """Raises: NotCapturable when rounding alone leaves too little of an output, naming the layer.

    locate: the place of the first layer that is off by so much in float32; asked only on failure.
    """
    for output in outputs:
        if ill_conditioned(output):
            place = None if output.scale is None else locate(LARGEST_TOLERANCE / OWN_ERROR_FACTOR)
            raise refusal(output, precision, place)


def check_fold(
    original: fx.GraphModule, folded: fx.GraphModule, cases: Sequence[ParityCase], outputs: Sequence[Output]
) -> Parity:
    """Compare the folded graph, run in float64, with float64 eager. original: the graph before the fold.

    What is run is the graph that will be written, its constants as they were before rounding (float64_graph.py).
    Raises: ParityFailed, naming the first layer that differs.
    """
    chosen = [case for case in cases if not case.large and (case.fresh or case.rows in ROW_COUNTS)]
    total = {output.name: OutputParity(NONE, FOLD_TOLERANCE) for output in outputs}
    for case in chosen:
        answers = _answers(original, folded, case)
        for index, (output, got) in enumerate(zip(outputs, answers, strict=True)):
            found = output.difference(case, index, got)
            before, allowed = total[output.name].difference, total[output.name].tolerance
            if found.max_rel > allowed:
                allowed = max(allowed, _fold_tolerance(original, case, output, index))
            if not found.max_rel <= allowed:
                raise ParityFailed(_fold_message(original, folded, case, output, index, found, allowed))
            total[output.name] = OutputParity(before.worse(found), allowed)
    return Parity(total, _rows(chosen))


def _answers(original: fx.GraphModule, folded: fx.GraphModule, case: ParityCase) -> tuple[Tensor, ...]:
    """The folded graph's outputs. Raises: ParityFailed where it does not take inputs that the eager network takes."""
    try:
        return run_float64(folded, case.inputs)
    except Exception as error:
        shapes = [tuple(t.shape) for t in case.inputs]
        fails = f"on inputs of the shapes {shapes} that the eager network takes: {error}"
        try:
            run_float64(original, case.inputs)
        except Exception:
            raise ParityFailed(
                f"the captured graph fails, before any fold, {fails}. forward takes another path at these sizes; make "
                "the axis static, or forward free of its size."
            ) from error
        raise ParityFailed(
            f"the folded graph fails {fails}. This is a fault of the fold; please report the network."
        ) from error


def _fold_tolerance(original: fx.GraphModule, case: ParityCase, output: Output, index: int) -> float:
    """What float64 itself leaves: 20 times what other roundings move; see above."""
    generator = torch.Generator().manual_seed(0)

    def rounded(weight: Tensor) -> Tensor:
        up = torch.rand(weight.shape, generator=generator) < 0.5
        return torch.nextafter(weight, torch.where(up, torch.inf, -torch.inf).to(weight))

    with OtherOrder():  # type: ignore[no-untyped-call]
        turned = run_float64(original, case.inputs, rounded)[index]
    moved = output.difference(case, index, turned).max_rel
    return min(LARGEST_FOLD_TOLERANCE, max(FOLD_TOLERANCE, ORDER_FACTOR * moved))


def check_file(
    label: str,
    run: Runner,
    cases: Sequence[ParityCase],
    outputs: Sequence[Output],
    precision: Precision,
    locate: Locate,
) -> Parity:
    """Compare what run answers with what the cases want, on every case.

    label: what the file is, as "TorchScript file".
    Raises: ParityFailed; FormNotWritten where the file can run none of the cases: it has no answers to be wrong.
    """
    total = {output.name: NONE for output in outputs}
    for case in cases:
        try:
            answers = run(case.inputs)
        except Exception as error:
            if not any(_runs(run, other) for other in cases if other is not case):
                raise FormNotWritten(f"the {label} cannot be run: {reason(error)}") from error
            shapes = [tuple(t.shape) for t in case.inputs]
            raise ParityFailed(
                f"the {label} fails on inputs of the shapes {shapes} that the eager network takes: {error}"
            ) from error
        for index, (output, got) in enumerate(zip(outputs, answers, strict=True)):
            found = output.difference(case, index, got)
            if not output.allows(found):
                raise ParityFailed(
                    f"the {label} answers differently from the eager network: output {output.name!r}, "
                    f"{case.rows} rows, {_told(output, found, precision)}. {_located(locate, case)}"
                )
            total[output.name] = total[output.name].worse(found)
    return Parity(
        {o.name: OutputParity(total[o.name], o.tolerance, _note(cases, i)) for i, o in enumerate(outputs)},
        _rows(cases),
    )


def _located(locate: Locate, case: ParityCase) -> str:
    """A sentence on the first layer that differs."""
    try:
        return _first_layer(locate(case))
    except FormNotWritten as error:  # of the file that shows every value, not of the wrong one
        return f"Which layer it is could not be looked for: {error}."


def _runs(run: Runner, case: ParityCase) -> bool:
    try:
        run(case.inputs)
    except Exception:
        return False
    return True


def _note(cases: Sequence[ParityCase], index: int) -> str:
    if any(bool(torch.isfinite(case.wanted[index]).any()) for case in cases):
        return ""
    return "every value that was tried is NaN or infinite, so nothing but that was compared"


def _told(output: Output, found: Difference, precision: Precision) -> str:
    if output.scale is None and not output.chosen:
        return f"{found.max_rel:.0%} of the elements differ that are no near ties"
    return (
        f"largest difference {found.max_abs:.3g} ({found.max_rel:.1e} relative{_in_column(output)}), tolerance "
        f"{output.tolerance:.1e}{_of_precision(precision)}"
    )


def _in_column(output: Output) -> str:
    return " to the values of its column" if output.axes else ""


def _fold_message(
    original: fx.GraphModule,
    folded: fx.GraphModule,
    case: ParityCase,
    output: Output,
    index: int,
    found: Difference,
    allowed: float,
) -> str:
    captured = output.difference(case, index, run_float64(original, case.inputs)[index])
    size = (
        f"output {index}, {case.rows} rows, {found.max_rel:.1e} relative in float64, tolerance {allowed:.0e}"
    )
    if not captured.max_rel <= allowed:
        return (
            f"the captured graph answers differently from the eager network ({size}), before any fold: "
            "forward reads something that torch.export took for a constant, such as a global, the clock or "
            "a Python number that changes. Make it an input or a buffer."
        )
    place = first_difference(
        folded.graph, float64_values(folded, case.inputs), float64_values(original, case.inputs), allowed
    )
    return (
        f"folding changed the answers ({size}). {_first_layer(place)} This is a fault of the fold; please "
        "report the network."
    )


def _of_precision(precision: Precision) -> str:
    if not precision.is_lower:
        return ""
    return f" of {precision.word}, which may be too coarse for this network: see whether fp32 passes"


def _first_layer(place: str | None) -> str:
    if place is None:
        return "No single layer differs when each is looked at by itself; the runtime fuses them differently."
    return f"First layer whose output differs: {place}."


def _rows(cases: Sequence[ParityCase]) -> tuple[int, ...]:
    return tuple(rows for rows, _ in itertools.groupby(sorted(case.rows for case in cases)))
