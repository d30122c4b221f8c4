"""The steps of an export, in their order, and why it is this order.

Each step reads and fills the one Job; STEPS is the list to read. A step raises an ExportError with the mend,
and the folder that is written aside vanishes with it (artifact.py). Progress is told to a callback; nothing
prints here.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from foldserve.models.errors import BadExample
from foldserve.models.export.artifact.labels import check_labels
from foldserve.models.export.artifact.manifest import (
    count_parameters,
    manifest,
    output_specs,
    write_manifest,
    write_reference,
)
from foldserve.models.export.artifact.memory import measure_memory
from foldserve.models.export.artifact.versions import (
    check_free,
    check_name,
    check_version,
    new_version,
    next_version,
)
from foldserve.models.export.capture.capture import CapturedGraph
from foldserve.models.export.capture.graph_copy import copied, without_unused
from foldserve.models.export.capture.offered_axes import (
    capture_with_offers,
    without_refused,
)
from foldserve.models.export.fold import FoldReport, fold_batch_norms
from foldserve.models.export.fold.exact import forget
from foldserve.models.export.network.caches import without_caches
from foldserve.models.export.network.example.example import Example, read_example
from foldserve.models.export.network.example.row_modes import INDEPENDENT, SERVE_TOGETHER, belong_together
from foldserve.models.export.network.module_copy import EvalCopy, eval_copy
from foldserve.models.export.network.sampling.source import with_source
from foldserve.models.export.precision.convert import Converted, convert
from foldserve.models.export.precision.precision import FP32, Precision, check_precision
from foldserve.models.export.process.running import plain_process
from foldserve.models.export.process.tidying import (
    give_back_memory,
    large_blocks_given_back,
    older_objects_aside,
)
from foldserve.models.export.verify.first_difference import first_lost_digits
from foldserve.models.export.verify.layers.check_layers import check_conversion, check_layers
from foldserve.models.export.verify.layers.first_wrong_layer import first_wrong_layer
from foldserve.models.export.verify.layers.onnx_values import OnnxValues, in_float32
from foldserve.models.export.verify.layers.torchscript_values import TorchScriptValues
from foldserve.models.export.verify.parity import (
    FOLD_TOLERANCE,
    Parity,
    check_conditioned,
    check_file,
    check_fold,
    check_rows,
    check_stateless,
)
from foldserve.models.export.verify.picture_cases import picture_case, settled_picture
from foldserve.models.export.verify.reference import ROW_COUNTS, EagerReference, ParityCase, sizes_to_prove
from foldserve.models.export.verify.settled import with_settled
from foldserve.models.export.verify.tolerance import FILE_TOLERANCE, Output, check_chosen, outputs_of
from foldserve.models.export.writers.forms import ONNX, TORCHSCRIPT, Form, Forms, chosen_forms
from foldserve.models.export.writers.onnx_writer import (
    check_opset,
    load_onnx,
    opset_of,
    run_onnx,
    save_onnx,
    to_onnx,
)
from foldserve.models.export.writers.torchscript_writer import (
    load_torchscript,
    run_torchscript,
    save_torchscript,
    to_torchscript,
)
from foldserve.models.image_input import ImageInput, image_of_manifest
from foldserve.service.artifact.pictures import PictureInput

DEFAULT_MAX_BATCH_SIZE = 32


@dataclass(frozen=True)
class Progress:
    """Step `index` of `total` begins (seconds is None), or has ended after so many seconds."""

    step: str
    index: int
    total: int
    seconds: float | None


@dataclass(frozen=True)
class ExportResult:
    """A finished version in a repository. report: the manifest's content. seconds: per step, in order.

    onnx_path, torchscript_path: None where that file was not asked for or cannot be written (report["not_written"]).
    """

    folder: Path
    onnx_path: Path | None
    torchscript_path: Path | None
    reference_path: Path
    manifest: Path
    report: dict[str, Any]
    seconds: dict[str, float]


@dataclass
class Job:
    """What one export knows. Owned by export_model.

    A field is set by one step, then only read. What holds the weights once more is let go of by the last step that
    reads it: copy and reference by "run eager". captured: the network's graph; from "fold" on the folded one.
    """

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
    example: Example = field(init=False)
    copy: EvalCopy = field(init=False)
    captured: CapturedGraph = field(init=False)
    reference: EagerReference = field(init=False)
    cases: tuple[ParityCase, ...] = field(init=False)
    outputs: tuple[Output, ...] = field(init=False)
    warnings: tuple[str, ...] = ()
    converted_weights: Collection[torch.dtype] = ()
    fold: FoldReport = field(init=False)
    converted: Converted = field(init=False)
    onnx_values: Mapping[str, str] = field(default_factory=dict)
    picture: PictureInput | None = None
    image: dict[str, Any] | None = None
    written_opset: int | None = None
    parity: dict[str, Parity] = field(default_factory=dict)
    report: dict[str, Any] = field(init=False)


def _copy(job: Job) -> None:
    example = read_example(
        job.module, job.example_inputs, job.dynamic_axes, job.input_names, together=job.together
    )
    copy = eval_copy(job.module)
    example = without_refused(copy, example)
    job.copy = without_caches(copy, example)
    job.converted_weights = job.copy.converted
    job.example = with_source(job.copy, example)  # before capture: from here on, inputs are drawn
    if isinstance(job.copy.module, ImageInput):
        job.picture = settled_picture(job.copy.module, job.example)
    job.image = image_of_manifest(job.copy.module, job.picture)


def _capture(job: Job) -> None:
    names = tuple(job.output_names) if job.output_names else None
    job.captured, job.example = capture_with_offers(job.copy, job.example, names)
    if job.labels is not None:
        check_labels(job.labels, output_specs(job.captured))
    if job.all_sizes:
        job.captured.sizes.check_all()


def _run_eager(job: Job) -> None:
    job.reference = EagerReference(job.copy, job.example, job.captured.outputs)
    cases = job.reference.cases(sizes_to_prove(job.captured.sizes, job.example))
    check_stateless(job.reference, cases)
    if not job.together:
        check_rows(job.reference, cases, job.captured.graph_module)
        if job.max_batch_size not in ROW_COUNTS:
            cases += (job.reference.large_case(cases, job.max_batch_size),)
    if job.picture is not None and isinstance(job.copy.module, ImageInput):
        found = picture_case(job.copy.module, job.picture, job.example, job.reference)
        case, job.parity["pictures"] = found
        cases += (case,)
    job.cases = with_settled(job.reference, cases, job.precision)
    job.warnings = job.reference.warnings
    del job.copy, job.reference
    names, axes = job.captured.output_names, job.captured.fixed_axes()
    job.outputs = outputs_of(names, axes, job.cases, job.precision, check_chosen(job.tolerance, names))
    check_conditioned(job.outputs, job.precision, lambda tolerance: _lost_digits(job, tolerance))


def _lost_digits(job: Job, tolerance: float) -> str | None:
    case = next(case for case in job.cases if case.reference)
    return first_lost_digits(job.captured.graph_module, case.inputs, tolerance)


def _fold(job: Job) -> None:
    original = job.captured.graph_module
    graph_module = copied(original)
    job.fold = fold_batch_norms(graph_module)
    folded = without_unused(graph_module)
    give_back_memory()
    job.parity["fold_float64"] = check_fold(original, folded, job.cases, job.outputs)
    forget(folded.graph)
    job.captured = job.captured.with_graph(folded)


def _convert(job: Job) -> None:
    original = job.captured.graph_module
    job.converted = convert(job.captured, job.precision, [case.inputs for case in _few(job)])
    check_conversion(original, job.converted.captured.graph_module, job.converted.rounded)


def _write_torchscript(job: Job) -> None:
    save_torchscript(to_torchscript(job.converted.captured.graph_module), job.folder / "model.pt")


def _write_onnx(job: Job) -> None:
    written = to_onnx(job.converted.captured, job.opset)
    save_onnx(written.model, job.folder / "model.onnx")
    job.written_opset = opset_of(written.model)
    job.onnx_values = written.values


def _verify_torchscript(job: Job) -> None:
    scripted = load_torchscript(job.folder / "model.pt")
    warming = iter(range(2))

    def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for _ in warming:  # TorchScript optimises after its first runs; what serves is the optimised form
            run_torchscript(scripted, inputs)
        return run_torchscript(scripted, inputs)

    label, locate = "TorchScript file", functools.partial(_locate_torchscript, job)
    job.parity["torchscript"] = check_file(label, run, job.cases, job.outputs, job.precision, locate)
    values = TorchScriptValues(scripted)
    check_layers(label, values, _written(job), job.cases, FOLD_TOLERANCE, exact=True)


def _locate_torchscript(job: Job, case: ParityCase) -> str | None:
    values = TorchScriptValues(load_torchscript(job.folder / "model.pt"))
    wrong = first_wrong_layer(_written(job), case.inputs, values, FOLD_TOLERANCE, exact=True)
    return None if wrong is None else wrong.place


def _verify_onnx(job: Job) -> None:
    label, locate = "ONNX file", functools.partial(_locate_onnx, job)
    run = functools.partial(run_onnx, load_onnx(job.folder / "model.onnx"))
    job.parity["onnx"] = check_file(label, run, job.cases, job.outputs, job.precision, locate)
    del run
    with _onnx_values(job) as values:
        check_layers(label, values, _written(job), job.cases, FILE_TOLERANCE, exact=False)


def _locate_onnx(job: Job, case: ParityCase) -> str | None:
    with _onnx_values(job) as values:
        wrong = first_wrong_layer(_written(job), case.inputs, values, FILE_TOLERANCE, exact=False)
    return None if wrong is None else wrong.place


@contextlib.contextmanager
def _onnx_values(job: Job) -> Iterator[OnnxValues]:
    """The ONNX file; in 16 bits without its roundings."""
    path = job.folder / "model.onnx"
    with in_float32(path) if job.precision.is_lower else contextlib.nullcontext(path) as computing:
        yield OnnxValues(computing, job.onnx_values, job.converted.captured.output_names)


def _written(job: Job) -> fx.GraphModule:
    """The graph that both files are written from."""
    return job.converted.captured.graph_module


def _few(job: Job) -> tuple[ParityCase, ...]:
    """The cases of few rows: float64 is slow, and the large batch has the same rows again."""
    return tuple(case for case in job.cases if not case.large)


def _describe(job: Job) -> None:
    case = next(c for c in job.cases if c.reference)
    write_reference(job.captured, case.inputs, case.wanted, job.folder / "reference.npz")
    job.report = manifest(
        name=job.name,
        version=job.version,
        source=job.source,
        example=job.example,
        captured=job.captured,
        opset=job.written_opset if job.forms.has(ONNX) else None,
        not_written=job.forms.not_written,
        precision=job.precision,
        kept=job.converted.kept,
        converted_weights=job.converted_weights,
        memory=measure_memory(job.converted.captured),
        max_batch_size=job.max_batch_size,
        parameters=count_parameters(job.module),
        fold=job.fold,
        parity=job.parity,
        warnings=job.warnings,
        files=sorted(job.folder.iterdir()),
        image=job.image,
        labels=job.labels,
    )
    write_manifest(job.report, job.folder / "manifest.json")


def _in(form: Form, step: Callable[[Job], None]) -> Callable[[Job], None]:
    """The step of one form, passed over where that is not written."""

    def run(job: Job) -> None:
        if job.forms.has(form):
            with job.forms.attempt(form, job.folder):
                step(job)

    return run


STEPS: tuple[tuple[str, Callable[[Job], None]], ...] = (
    ("copy", _copy),  # first: from here on the user's module is only counted
    ("capture", _capture),
    ("run eager", _run_eager),  # before the fold: a network that cannot be served at all is told so at once
    ("fold", _fold),  # one fold, in float32; the float64 gate proves it before any file is written
    ("set precision", _convert),  # behind the gate: the errors of a fold and of rounding are told apart
    ("write TorchScript", _in(TORCHSCRIPT, _write_torchscript)),
    ("write ONNX", _in(ONNX, _write_onnx)),
    # The files as a server loads them, not what they came from.
    ("verify TorchScript", _in(TORCHSCRIPT, _verify_torchscript)),
    ("verify ONNX", _in(ONNX, _verify_onnx)),
    ("write manifest", _describe),  # last: it has the hashes and the parity of everything above
)


def export_model(
    module: nn.Module,
    example_inputs: Sequence[Any] | Mapping[str, Any],
    destination: str | Path,
    *,
    name: str,
    version: int | str | None = None,
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    rows: str = INDEPENDENT,
    max_batch_size: int | None = None,
    opset: int | None = None,
    precision: str = FP32.word,
    only: str | None = None,
    labels: Sequence[str] | None = None,
    all_sizes: bool = False,
    tolerance: float | Mapping[str, float] | None = None,
    source: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> ExportResult:
    """Fold, write and verify module as <destination>/<name>/<version>/; module itself is unchanged.

    Args:
        module: any nn.Module, in any mode; exported in eval mode, on the CPU.
        example_inputs: a tuple, one entry per argument of forward, or a dict by their names; tensors or numpy
            arrays, also nested in dicts, lists, tuples and dataclasses. Dim 0 of every tensor is the rows.
            Integers show the range of valid values. None and Python numbers and texts stay fixed in the files.
        destination: the repository; made if it does not exist.
        name: letters, digits, '_', '-', '.'. version: a positive integer that does not exist yet;
            default the newest one of that name and one more, or 1.
        dynamic_axes: {input: {axis: label}} for axes other than the rows; axes of one label have one size. The
            label "rows" names the axis that counts the rows where it is not axis 0; the files have it in dim 0.
        input_names, output_names: names in the files; default forward's parameters, and `y` (or the keys of a
            dict, or y0, y1, ...).
        rows: "independent": the answer for a row is its own, which is checked, and a server runs rows of many requests
            in one batch. "together": an answer belongs to all that was sent with it; a server runs one request at a
            time, in the network's own shapes, and outputs need no rows.
        max_batch_size: rows of the largest batch that a server will run, default 32; verified as such.
        opset: the ONNX operator set, default 18.
        precision: "fp32", "fp16" or "bf16", of weights and computing; inputs and outputs keep their types.
        only: "torchscript" or "onnx", to write and prove that file alone; default both. Without it, where one cannot
            be written or run at all, the other is exported alone: `not_written` in the manifest says why.
        labels: names of the classes, one for each column of the output, for the manifest.
        all_sizes: refuse a network that takes sizes of a dynamic axis which the files cannot answer for, instead
            of narrowing the axis (`dims` and `narrowed` in the manifest).
        tolerance: how far a file may be off, relative to the values of its column: one number for all outputs, or
            {output: number}; default what models/export/verify/tolerance.py derives from the network's own error, at
            most 1e-2 in fp32 and 0.1 in 16 bits.
        source: what the manifest says the network came from; default the class of module.
        progress: called when a step begins and when it has ended; its errors end the export and come out unchanged.
    Raises: an ExportError (models/errors.py) with the reason and the mend. Nothing is left on the disk then.
    """
    repository = Path(destination)
    together = belong_together(rows, max_batch_size)
    largest = 0 if together else DEFAULT_MAX_BATCH_SIZE if max_batch_size is None else max_batch_size
    _check_settings(module, check_name(name), largest, together)
    number = next_version(repository, name) if version is None else check_version(version)
    chosen = check_precision(precision, opset)
    forms = chosen_forms(only, chosen, opset)
    if opset is not None:
        check_opset(opset)
    check_free(repository, name, number)
    seconds: dict[str, float] = {}
    with (
        _errors_of_the_callback(),
        plain_process(),
        large_blocks_given_back(),
        older_objects_aside(),
        new_version(repository, name, number) as folder,
    ):
        job = Job(
            module,
            example_inputs,
            name,
            number,
            source or f"{type(module).__module__}.{type(module).__qualname__}",
            dynamic_axes,
            input_names,
            output_names,
            together,
            largest,
            opset,
            chosen,
            forms,
            labels,
            all_sizes,
            tolerance,
            folder,
        )
        for index, (step, run) in enumerate(STEPS, start=1):
            _tell(progress, Progress(step, index, len(STEPS), None))
            begun = time.perf_counter()
            run(job)
            give_back_memory()
            seconds[step] = time.perf_counter() - begun
            _tell(progress, Progress(step, index, len(STEPS), seconds[step]))
    return _result(repository / name / str(number), job.report, seconds)


def _check_settings(module: object, name: str, max_batch_size: object, together: bool) -> None:
    if not isinstance(module, nn.Module):
        raise BadExample(f"{name}: module is a {type(module).__name__}; expected an nn.Module")
    least = 0 if together else 1
    if isinstance(max_batch_size, bool) or not isinstance(max_batch_size, int) or max_batch_size < least:
        raise BadExample(
            f"{name}: max_batch_size is {max_batch_size!r}; expected a number of rows, 1 or more. {SERVE_TOGETHER}"
        )


def _result(folder: Path, report: dict[str, Any], seconds: dict[str, float]) -> ExportResult:
    return ExportResult(
        folder=folder,
        onnx_path=folder / ONNX.file if ONNX.file in report["files"] else None,
        torchscript_path=folder / TORCHSCRIPT.file if TORCHSCRIPT.file in report["files"] else None,
        reference_path=folder / "reference.npz",
        manifest=folder / "manifest.json",
        report=report,
        seconds=seconds,
    )


@contextlib.contextmanager
def _errors_of_the_callback() -> Iterator[None]:
    """The caller's own error comes out as it went in."""
    try:
        yield
    except _CallbackFailed as failed:
        raise failed.error from None


class _CallbackFailed(Exception):
    """Carries an error of the caller's progress callback past those who ask whether the disk is full."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def _tell(progress: Callable[[Progress], None] | None, event: Progress) -> None:
    if progress is None:
        return
    try:
        progress(event)
    except Exception as error:
        raise _CallbackFailed(error) from error
