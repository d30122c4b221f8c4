"""The steps of an export: each a function of what the steps before it made, which gives a value that nobody changes.

    Request -> Network -> Captured -> Answers -> Folded -> Converted -> Written -> Parity of each file -> manifest

A step raises an ExportError with the fix. In which order they are run, and why: pipeline.py.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foldserve.models.export.artifact.labels import check_labels
from foldserve.models.export.artifact.manifest import (
    count_parameters,
    manifest,
    output_specs,
    write_manifest,
    write_reference,
)
from foldserve.models.export.artifact.memory import measure_memory
from foldserve.models.export.capture.capture import CapturedGraph
from foldserve.models.export.capture.graph_copy import copied, without_unused
from foldserve.models.export.capture.offered_axes import capture_with_offers, without_refused
from foldserve.models.export.fold import FoldReport, fold_batch_norms
from foldserve.models.export.fold.exact import forget
from foldserve.models.export.network.caches import without_caches
from foldserve.models.export.network.example.example import Example, read_example
from foldserve.models.export.network.module_copy import EvalCopy, eval_copy
from foldserve.models.export.network.sampling.source import with_source
from foldserve.models.export.precision.convert import Converted, convert
from foldserve.models.export.precision.precision import Precision
from foldserve.models.export.process.tidying import give_back_memory
from foldserve.models.export.verify.check_files import check_onnx, check_torchscript
from foldserve.models.export.verify.first_difference import first_lost_digits
from foldserve.models.export.verify.layers.check_layers import check_conversion
from foldserve.models.export.verify.parity import (
    Parity,
    check_conditioned,
    check_fold,
    check_rows,
    check_stateless,
)
from foldserve.models.export.verify.picture_cases import picture_case, settled_picture
from foldserve.models.export.verify.reference import ROW_COUNTS, EagerReference, ParityCase, sizes_to_prove
from foldserve.models.export.verify.settled import with_settled
from foldserve.models.export.verify.tolerance import Output, check_chosen, outputs_of
from foldserve.models.export.writers.forms import ONNX, TORCHSCRIPT, Forms
from foldserve.models.export.writers.onnx_writer import opset_of, save_onnx, to_onnx
from foldserve.models.export.writers.torchscript_writer import save_torchscript, to_torchscript
from foldserve.models.image_input import ImageInput, image_of_manifest
from foldserve.service.artifact.pictures import PictureInput


@dataclass(frozen=True)
class Request:
    """What the caller of export_model asks for, checked. together: of the rows. folder: where the files are written."""

    module: nn.Module
    example_inputs: Sequence[Any] | Mapping[str, Any]
    name: str
    version: int
    source: str
    dynamic_axes: Mapping[str, Mapping[int, str]] | None
    input_names: Sequence[str] | None
    output_names: Sequence[str] | None
    together: bool
    max_batch_size: int
    opset: int | None
    precision: Precision
    forms: Forms
    labels: Sequence[str] | None
    all_sizes: bool
    tolerance: float | Mapping[str, float] | None
    folder: Path


@dataclass(frozen=True)
class Network:
    """The copy of the user's network that is exported, and its example. picture: what it declares of pictures."""

    copy: EvalCopy
    example: Example
    picture: PictureInput | None


@dataclass(frozen=True)
class Origin:
    """What the manifest says of the network itself, whose weights are let go of before the end.

    example: the one that the graph answers to. image: of its pictures. converted_weights: types that its weights had.
    """

    example: Example
    image: dict[str, Any] | None
    converted_weights: Collection[torch.dtype]


@dataclass(frozen=True)
class Captured:
    """The network as a graph."""

    graph: CapturedGraph
    origin: Origin


@dataclass(frozen=True)
class Answers:
    """The eager network's, which everything is compared with. outputs: how far each may be off.

    warnings: what they do not show. pictures: how far they are from what the network declares of pictures.
    """

    cases: tuple[ParityCase, ...]
    outputs: tuple[Output, ...]
    warnings: tuple[str, ...]
    pictures: Parity | None


@dataclass(frozen=True)
class Folded:
    """The graph without the batch norms that could be folded, what became of them, and the proof."""

    graph: CapturedGraph
    report: FoldReport
    parity: Parity


@dataclass(frozen=True)
class WrittenOnnx:
    """opset: the operator set that the file is in. names: node of the graph → the name of its value in the file."""

    path: Path
    opset: int
    names: Mapping[str, str]


def copy_network(request: Request) -> Network:
    """The user's module is only counted from here on."""
    example = read_example(
        request.module,
        request.example_inputs,
        request.dynamic_axes,
        request.input_names,
        together=request.together,
    )
    copy = eval_copy(request.module)
    example = without_refused(copy, example)
    copy = without_caches(copy, example)
    example = with_source(copy, example)  # before capture: from here on, inputs are drawn
    picture = settled_picture(copy.module, example) if isinstance(copy.module, ImageInput) else None
    return Network(copy, example, picture)


def capture_network(request: Request, network: Network) -> Captured:
    """One graph, whose labels and sizes are as the caller asked."""
    names = tuple(request.output_names) if request.output_names else None
    graph, example = capture_with_offers(network.copy, network.example, names)
    if request.labels is not None:
        check_labels(request.labels, output_specs(graph))
    if request.all_sizes:
        graph.sizes.check_all()
    image = image_of_manifest(network.copy.module, network.picture)
    return Captured(graph, Origin(example, image, network.copy.converted))


def run_eager(request: Request, network: Network, captured: Captured) -> Answers:
    """The answers, and that they can be served at all: without state, row by row, with digits left."""
    graph, example = captured.graph, captured.origin.example
    reference = EagerReference(network.copy, example, graph.outputs)
    cases = reference.cases(sizes_to_prove(graph.sizes, example))
    check_stateless(reference, cases)
    if not request.together:
        check_rows(reference, cases, graph.graph_module)
        if request.max_batch_size not in ROW_COUNTS:
            cases += (reference.large_case(cases, request.max_batch_size),)
    pictures = None
    if network.picture is not None and isinstance(network.copy.module, ImageInput):
        case, pictures = picture_case(network.copy.module, network.picture, example, reference)
        cases += (case,)
    cases = with_settled(reference, cases, request.precision)
    warnings = reference.warnings
    del reference  # the weights in float64
    outputs = _outputs(request, graph, cases)
    return Answers(cases, outputs, warnings, pictures)


def _outputs(request: Request, graph: CapturedGraph, cases: Sequence[ParityCase]) -> tuple[Output, ...]:
    names = graph.output_names
    outputs = outputs_of(
        names, graph.fixed_axes(), cases, request.precision, check_chosen(request.tolerance, names)
    )

    def lost_digits(tolerance: float) -> str | None:
        return first_lost_digits(graph.graph_module, _reference_case(cases).inputs, tolerance)

    check_conditioned(outputs, request.precision, lost_digits)
    return outputs


def fold(captured: Captured, answers: Answers) -> Folded:
    """Fold a copy of the graph, and prove it in float64."""
    original = captured.graph.graph_module
    graph_module = copied(original)
    report = fold_batch_norms(graph_module)
    folded = without_unused(graph_module)
    give_back_memory()
    parity = check_fold(original, folded, answers.cases, answers.outputs)
    forget(folded.graph)
    return Folded(captured.graph.with_graph(folded), report, parity)


def set_precision(request: Request, folded: Folded, answers: Answers) -> Converted:
    """The graph that both files are written from."""
    # float64 is slow, and the large batch has the same rows again
    few = [case.inputs for case in answers.cases if not case.large]
    converted = convert(folded.graph, request.precision, few)
    check_conversion(folded.graph.graph_module, converted.captured.graph_module, converted.rounded)
    return converted


def write_torchscript(request: Request, converted: Converted) -> Path:
    """Write the TorchScript file; its path."""
    path = request.folder / TORCHSCRIPT.file
    save_torchscript(to_torchscript(converted.captured.graph_module), path)
    return path


def write_onnx(request: Request, converted: Converted) -> WrittenOnnx:
    """Write the ONNX file."""
    path, form = request.folder / ONNX.file, to_onnx(converted.captured, request.opset)
    save_onnx(form.model, path)
    return WrittenOnnx(path, opset_of(form.model), form.values)


def verify_torchscript(path: Path, request: Request, converted: Converted, answers: Answers) -> Parity:
    """How far the TorchScript file is off."""
    return check_torchscript(path, converted.captured, answers.cases, answers.outputs, request.precision)


def verify_onnx(onnx: WrittenOnnx, request: Request, converted: Converted, answers: Answers) -> Parity:
    """How far the ONNX file is off."""
    graph, precision = converted.captured, request.precision
    return check_onnx(onnx.path, graph, onnx.names, answers.cases, answers.outputs, precision)


def describe(
    request: Request,
    origin: Origin,
    answers: Answers,
    folded: Folded,
    converted: Converted,
    opset: int | None,
    parity: Mapping[str, Parity],
) -> dict[str, Any]:
    """Write reference.npz and manifest.json; what the second says. parity: as manifest() takes it."""
    case = _reference_case(answers.cases)
    write_reference(folded.graph, case.inputs, case.wanted, request.folder / "reference.npz")
    content = manifest(
        name=request.name,
        version=request.version,
        source=request.source,
        example=origin.example,
        captured=folded.graph,
        opset=opset,
        not_written=request.forms.not_written,
        precision=request.precision,
        kept=converted.kept,
        converted_weights=origin.converted_weights,
        memory=measure_memory(converted.captured),
        max_batch_size=request.max_batch_size,
        parameters=count_parameters(request.module),
        fold=folded.report,
        parity=parity,
        warnings=answers.warnings,
        files=sorted(request.folder.iterdir()),
        image=origin.image,
        labels=request.labels,
    )
    write_manifest(content, request.folder / "manifest.json")
    return content.to_json()


def _reference_case(cases: Sequence[ParityCase]) -> ParityCase:
    return next(case for case in cases if case.reference)
