"""Proof in numbers that the files hold the network in every layer, also where it hardly reaches an output.

1. In 16 bits: the graph that the files are written from is the one in float32 but for its roundings (exactness.py).
2. Each layer of the TorchScript file in float64 against that graph: the same kernels on the same numbers.
3. Each layer of the ONNX file, which no runtime computes in float64, in float32.

One row is enough: how a layer is computed does not depend on its numbers, and its weights are compared themselves
(check_weights.py). What depends on sizes and rows, and on what a runtime makes of a file, is proved with the outputs of
all cases (parity.py). What a layer is: first_wrong_layer.py.
"""

from collections.abc import Mapping, Sequence

from torch import fx

from foldserve.models.errors import ParityFailed
from foldserve.models.export.capture.graph_cleanup import where
from foldserve.models.export.verify.layers.exactness import first_conversion_fault
from foldserve.models.export.verify.layers.first_wrong_layer import FileValues, first_wrong_layer
from foldserve.models.export.verify.reference import ROW_COUNTS, ParityCase


def check_conversion(original: fx.GraphModule, written: fx.GraphModule, rounded: Mapping[str, str]) -> None:
    """Raises: ParityFailed when written is not original in 16 bits. rounded: convert.Converted."""
    wrong = first_conversion_fault(original, written, rounded)
    if wrong is not None:
        raise ParityFailed(
            f"the conversion to 16 bits changed more than it rounds, first at {where(wrong)}. This is a fault of the "
            "conversion; please report the network."
        )


def check_layers(
    label: str,
    values: FileValues,
    graph_module: fx.GraphModule,
    cases: Sequence[ParityCase],
    tolerance: float,
    *,
    exact: bool,
) -> None:
    """Compare each layer of a file with graph_module, relative to its column.

    label: what the file is. exact: it computes in float64.
    Raises: ParityFailed, naming the layer; FormNotWritten where the file cannot be opened for it.
    """
    fresh = [case for case in cases if case.fresh and not case.large]
    case = next((case for case in fresh if case.rows == ROW_COUNTS[0]), fresh[0])
    wrong = first_wrong_layer(graph_module, case.inputs, values, tolerance, exact=exact)
    if wrong is not None:
        raise ParityFailed(
            f"the {label} computes a layer differently from the network: {wrong.place}, largest difference "
            f"{wrong.difference.max_abs:.3g} ({wrong.difference.max_rel:.1e} relative), tolerance {wrong.allowed:.1e}."
        )
