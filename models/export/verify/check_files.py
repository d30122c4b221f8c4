"""Both files as a server loads them, not what they came from: their answers on every case, and each of their layers."""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from foldserve.models.export.capture.capture import CapturedGraph
from foldserve.models.export.precision.precision import Precision
from foldserve.models.export.verify.layers.check_layers import check_layers
from foldserve.models.export.verify.layers.check_weights import (
    check_weights,
    weights_of_onnx,
    weights_of_torchscript,
)
from foldserve.models.export.verify.layers.first_wrong_layer import first_wrong_layer
from foldserve.models.export.verify.layers.onnx_values import OnnxValues, in_float32
from foldserve.models.export.verify.layers.torchscript_values import TorchScriptValues
from foldserve.models.export.verify.parity import FOLD_TOLERANCE, Parity, check_file
from foldserve.models.export.verify.reference import ParityCase
from foldserve.models.export.verify.tolerance import FILE_TOLERANCE, Output
from foldserve.models.export.writers.onnx_writer import load_onnx, run_onnx
from foldserve.models.export.writers.torchscript_writer import (
    attribute_names,
    load_torchscript,
    run_torchscript,
)


def check_torchscript(
    path: Path,
    written: CapturedGraph,
    cases: Sequence[ParityCase],
    outputs: Sequence[Output],
    precision: Precision,
) -> Parity:
    """How far the TorchScript file at path is off. written: the graph that it was written from.

    Raises: ParityFailed; FormNotWritten where it cannot be run at all.
    """
    scripted = load_torchscript(path)
    warming = iter(range(2))

    def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for _ in warming:  # TorchScript optimises after its first runs; what serves is the optimised form
            run_torchscript(scripted, inputs)
        return run_torchscript(scripted, inputs)

    label, locate = "TorchScript file", functools.partial(_locate_torchscript, path, written)
    parity = check_file(label, run, cases, outputs, precision, locate)
    weight_of = weights_of_torchscript(scripted, attribute_names(written.graph_module))
    check_weights(label, weight_of, written.graph_module)
    values = TorchScriptValues(scripted)
    check_layers(label, values, written.graph_module, cases, FOLD_TOLERANCE, exact=True)
    return parity


def _locate_torchscript(path: Path, written: CapturedGraph, case: ParityCase) -> str | None:
    values = TorchScriptValues(load_torchscript(path))
    wrong = first_wrong_layer(written.graph_module, case.inputs, values, FOLD_TOLERANCE, exact=True)
    return None if wrong is None else wrong.place


def check_onnx(
    path: Path,
    written: CapturedGraph,
    names: Mapping[str, str],
    cases: Sequence[ParityCase],
    outputs: Sequence[Output],
    precision: Precision,
) -> Parity:
    """How far the ONNX file at path is off. written: the graph that it was written from. names: OnnxForm.values.

    Raises: ParityFailed; FormNotWritten where it cannot be run at all.
    """
    label, locate = "ONNX file", functools.partial(_locate_onnx, path, written, names, precision)
    run = functools.partial(run_onnx, load_onnx(path))
    parity = check_file(label, run, cases, outputs, precision, locate)
    del run
    check_weights(label, weights_of_onnx(path), written.graph_module)
    with _onnx_values(path, written, names, precision) as values:
        check_layers(label, values, written.graph_module, cases, FILE_TOLERANCE, exact=False)
    return parity


def _locate_onnx(
    path: Path, written: CapturedGraph, names: Mapping[str, str], precision: Precision, case: ParityCase
) -> str | None:
    with _onnx_values(path, written, names, precision) as values:
        wrong = first_wrong_layer(written.graph_module, case.inputs, values, FILE_TOLERANCE, exact=False)
    return None if wrong is None else wrong.place


@contextlib.contextmanager
def _onnx_values(
    path: Path, written: CapturedGraph, names: Mapping[str, str], precision: Precision
) -> Iterator[OnnxValues]:
    """The ONNX file; in 16 bits without its roundings."""
    with in_float32(path) if precision.is_lower else contextlib.nullcontext(path) as computing:
        yield OnnxValues(computing, names, written.output_names)
