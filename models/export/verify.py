"""Proof in numbers that the export did not change the answers. Nothing is trusted: the files are run.

1. Rows: a row's answer in a batch is its answer alone; else it could not be batched with other people's rows.
2. The fold: the folded graph, run in float64, against the float64 eager network. Tolerance 1e-10 relative: float64
   carries 2e-16, some thousand roundings make 1e-13; a right fold measures below 1e-12, a wrong one 1e-1, and
   there is nothing in between.
3. The files: TorchScript and ONNX Runtime against float64 eager, with the tolerance of their precision.
   In float32: 1e-4 relative, the project's promise, or 20 times the float32 eager network's own error against
   float64 where that is larger: a network that loses digits by itself in float32 cannot have them in a file;
   20 leaves room for other orders of summation.
   In 16 bits: the same own error says how much the network makes of one rounding, so u / 2**-24 times that
   error is what rounding to u should cost (u = 2**-11 in fp16, 2**-8 in bf16). Measured over the networks of
   models/, random and trained weights, the files were off by 0.16 to 1.4 times as much, 16 bits summing in
   float32 as they do; tolerance 4 times as much, since another device rounds at other places. At least 8 u,
   for networks that are exact in float32 by luck, and never more than a tenth of the largest value: a wrong
   network is that far off.

The measure, also in the manifest: difference.py. The inputs: reference.py.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from models.errors import NotCapturable, ParityFailed
from models.export.difference import NONE, Difference, difference
from models.export.first_difference import first_difference, first_row_mixing
from models.export.float64_graph import float64_values, run_float64
from models.export.precision import FP32, Precision
from models.export.reference import ROW_COUNTS, Case, EagerReference

FOLD_TOLERANCE = 1e-10
FILE_TOLERANCE = 1e-4
OWN_ERROR_FACTOR = 20.0
LOWER_ERROR_FACTOR = 4.0
LEAST_ROUNDINGS = 8.0
LARGEST_TOLERANCE = 0.1
# Rows are compared in float64, where kernels sum in another order for another batch size: as the fold's.
ROW_TOLERANCE = 1e-8

Runner = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Parity:
    """How far one form of the network was off, over the cases tried; figures as in difference.py."""

    difference: Difference
    rows: tuple[int, ...]
    tolerance: float

    def to_manifest(self) -> dict[str, Any]:
        return {
            "max_abs": self.difference.max_abs,
            "max_rel": self.difference.max_rel,
            "rows_tried": list(self.rows),
            "tolerance": self.tolerance,
        }


def check_rows(reference: EagerReference, cases: Sequence[Case], graph_module: fx.GraphModule) -> None:
    """Raises: NotCapturable, naming the layer, when a row's answer depends on the other rows of its batch."""
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
                    "track_running_stats=False), and rows in dim 0."
                )


def check_fold(original: fx.GraphModule, folded: fx.GraphModule, cases: Sequence[Case]) -> Parity:
    """Compare the folded graph, run in float64, with float64 eager. original: the graph before the fold.

    What is run is the graph that will be written, its constants as they were before rounding (float64_graph.py).
    Raises: ParityFailed, naming the first layer that differs.
    """
    chosen = [case for case in cases if case.rows in ROW_COUNTS]
    total = NONE
    for case in chosen:
        outputs = _answers(original, folded, case)
        for index, (got, want) in enumerate(zip(outputs, case.wanted, strict=True)):
            found = difference(got, want)
            if not found.max_rel <= FOLD_TOLERANCE:
                raise ParityFailed(_fold_message(original, folded, case, index, found))
            total = total.worse(found)
    return Parity(total, _rows(chosen), FOLD_TOLERANCE)


def _answers(original: fx.GraphModule, folded: fx.GraphModule, case: Case) -> tuple[Tensor, ...]:
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


def file_tolerance(precision: Precision, own_error: float) -> float:
    """How far a file may be off, relative. own_error: the float32 eager network's, against float64; see above."""
    if not precision.is_lower:
        return max(FILE_TOLERANCE, OWN_ERROR_FACTOR * own_error)
    expected = own_error * precision.roundoff / FP32.roundoff
    return min(LARGEST_TOLERANCE, max(LEAST_ROUNDINGS * precision.roundoff, LOWER_ERROR_FACTOR * expected))


def check_file(
    label: str,
    run: Runner,
    cases: Sequence[Case],
    output_names: Sequence[str],
    precision: Precision,
    locate: Callable[[Case, float], str | None],
) -> Parity:
    """Compare what run answers with float64 eager, on every case.

    label: "TorchScript" or "ONNX". locate: the place of the first differing layer, asked only on failure.
    Raises: ParityFailed.
    """
    tolerances = [
        file_tolerance(precision, max(_finite(case.own_error[index].max_rel) for case in cases))
        for index in range(len(output_names))
    ]
    total = NONE
    for case in cases:
        try:
            outputs = run(case.inputs)
        except Exception as error:
            shapes = [tuple(t.shape) for t in case.inputs]
            raise ParityFailed(
                f"the {label} file fails on inputs of the shapes {shapes} that the eager network takes: "
                f"{error}"
            ) from error
        for name, tolerance, got, want in zip(output_names, tolerances, outputs, case.wanted, strict=True):
            found = difference(got, want)
            if not found.max_rel <= tolerance:
                place = locate(case, tolerance)
                raise ParityFailed(
                    f"the {label} file answers differently from the eager network: output {name!r}, "
                    f"{case.rows} rows, largest difference {found.max_abs:.3g} ({found.max_rel:.1e} "
                    f"relative), tolerance {tolerance:.1e}{_of_precision(precision)}. {_first_layer(place)}"
                )
            total = total.worse(found)
    return Parity(total, _rows(cases), max(tolerances))


def locate_in_graph(
    folded: fx.GraphModule, run_every: Callable[[tuple[Tensor, ...]], Mapping[str, Tensor]]
) -> Callable[[Case, float], str | None]:
    """A `locate` for check_file. run_every: what the file's form gives for every node, by name."""

    def locate(case: Case, tolerance: float) -> str | None:
        return first_difference(
            folded.graph, run_every(case.inputs), float64_values(folded, case.inputs), tolerance
        )

    return locate


def _fold_message(
    original: fx.GraphModule, folded: fx.GraphModule, case: Case, index: int, found: Difference
) -> str:
    captured = difference(run_float64(original, case.inputs)[index], case.wanted[index])
    size = (
        f"output {index}, {case.rows} rows, {found.max_rel:.1e} relative in float64, tolerance "
        f"{FOLD_TOLERANCE:.0e}"
    )
    if not captured.max_rel <= FOLD_TOLERANCE:
        return (
            f"the captured graph answers differently from the eager network ({size}), before any fold: "
            "forward reads something that torch.export took for a constant, such as a global, the clock or "
            "a Python number that changes. Make it an input or a buffer."
        )
    place = first_difference(
        folded.graph,
        float64_values(folded, case.inputs),
        float64_values(original, case.inputs),
        FOLD_TOLERANCE,
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


def _finite(value: float) -> float:
    """Float32 eager may overflow where float64 does not; such a case gives no tolerance."""
    return value if math.isfinite(value) else 0.0


def _rows(cases: Sequence[Case]) -> tuple[int, ...]:
    return tuple(rows for rows, _ in itertools.groupby(sorted(case.rows for case in cases)))
