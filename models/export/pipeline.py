"""An export from its settings to a version in a repository: the steps in their order, and why it is this order.

STEPS is the list to read; what each does is in steps.py. A step raises an ExportError with the fix, and the folder that
is written aside vanishes with it (artifact/versions.py). Progress is told to a callback; nothing prints here.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from foldserve.models.errors import BadExample
from foldserve.models.export import steps
from foldserve.models.export.artifact.versions import (
    check_free,
    check_name,
    check_version,
    new_version,
    next_version,
)
from foldserve.models.export.network.example.row_modes import SERVE_TOGETHER, belong_together
from foldserve.models.export.precision.precision import FP32, check_precision
from foldserve.models.export.process.running import plain_process
from foldserve.models.export.process.tidying import (
    give_back_memory,
    large_blocks_given_back,
    older_objects_aside,
)
from foldserve.models.export.steps import Request
from foldserve.models.export.writers.forms import ONNX, TORCHSCRIPT, chosen_forms
from foldserve.models.export.writers.onnx_writer import check_opset
from foldserve.service.artifact.manifest import INDEPENDENT

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


STEPS = (
    "copy",  # first: from here on the user's module is only counted
    "capture",
    "run eager",  # before the fold: a network that cannot be served at all is told so at once
    "fold",  # one fold, in float32; the float64 gate proves it before any file is written
    "set precision",  # behind the gate: the errors of a fold and of rounding are told apart
    "write TorchScript",
    "write ONNX",
    "verify TorchScript",  # the files as a server loads them, not what they came from
    "verify ONNX",
    "write manifest",  # last: it has the hashes and the parity of everything above
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
    watch = _Watch(progress)
    with (
        _errors_of_the_callback(),
        plain_process(),
        large_blocks_given_back(),
        older_objects_aside(),
        new_version(repository, name, number) as folder,
    ):
        request = Request(
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
        report = _run_steps(request, watch)
    return _result(repository / name / str(number), report, watch.seconds)


def _run_steps(request: Request, watch: "_Watch") -> dict[str, Any]:
    """Run every step; the manifest's content.

    What holds the weights once more is let go of by the last step that reads it.
    """
    forms, folder = request.forms, request.folder
    with watch.step("copy"):
        network = steps.copy_network(request)
    with watch.step("capture"):
        captured = steps.capture_network(request, network)
    with watch.step("run eager"):
        answers = steps.run_eager(request, network, captured)
        del network
    with watch.step("fold"):
        folded = steps.fold(captured, answers)
        origin = captured.origin
        del captured
    with watch.step("set precision"):
        converted = steps.set_precision(request, folded, answers)
    with watch.step("write TorchScript"):
        script = forms.attempt(TORCHSCRIPT, folder, lambda: steps.write_torchscript(request, converted))
    with watch.step("write ONNX"):
        onnx = forms.attempt(ONNX, folder, lambda: steps.write_onnx(request, converted))
    parity = {"fold_float64": folded.parity, "pictures": answers.pictures}
    with watch.step("verify TorchScript"):
        if script is not None:
            verify = partial(steps.verify_torchscript, script, request, converted, answers)
            parity[TORCHSCRIPT.word] = forms.attempt(TORCHSCRIPT, folder, verify)
    with watch.step("verify ONNX"):
        if onnx is not None:
            verify = partial(steps.verify_onnx, onnx, request, converted, answers)
            parity[ONNX.word] = forms.attempt(ONNX, folder, verify)
    with watch.step("write manifest"):
        opset = onnx.opset if onnx is not None and forms.has(ONNX) else None
        found = {form: figures for form, figures in parity.items() if figures is not None}
        return steps.describe(request, origin, answers, folded, converted, opset, found)


class _Watch:
    """Tells progress when a step begins and has ended. seconds: of those that have, in their order."""

    def __init__(self, progress: Callable[[Progress], None] | None) -> None:
        self._progress = progress
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Within: the step of this name is run; behind it, the memory that it needed is given back."""
        index = STEPS.index(name) + 1
        self._tell(Progress(name, index, len(STEPS), None))
        begun = time.perf_counter()
        yield
        give_back_memory()
        self.seconds[name] = time.perf_counter() - begun
        self._tell(Progress(name, index, len(STEPS), self.seconds[name]))

    def _tell(self, event: Progress) -> None:
        if self._progress is None:
            return
        try:
            self._progress(event)
        except Exception as error:
            raise _CallbackFailed(error) from error


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
