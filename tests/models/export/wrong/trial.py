"""One export whose files are made wrong, one fault at a time, and verified each time as the export does it."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import torch
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from torch import Tensor, fx

from foldserve.models.errors import ExportError
from foldserve.models.export import steps
from foldserve.models.export.network.difference import difference, scale_of
from foldserve.models.export.network.sampling.random_inputs import random_inputs
from foldserve.models.export.pipeline import DEFAULT_MAX_BATCH_SIZE
from foldserve.models.export.precision.convert import Converted
from foldserve.models.export.precision.precision import PRECISIONS
from foldserve.models.export.process.float64_mode import float64_arithmetic, widened
from foldserve.models.export.steps import Request
from foldserve.models.export.verify import check_files
from foldserve.models.export.verify.layers.exactness import retyped
from foldserve.models.export.verify.parity import check_conditioned
from foldserve.models.export.verify.tolerance import outputs_of
from foldserve.models.export.writers.forms import ONNX, chosen_forms
from foldserve.models.export.writers.onnx_writer import save_onnx
from foldserve.models.export.writers.torchscript_writer import (
    load_torchscript,
    run_torchscript,
    save_torchscript,
    to_torchscript,
)
from foldserve.models.registry import resolve
from tests.models.export.conftest import TRAINED
from tests.models.export.wrong import in_graph, in_onnx
from tests.models.support import randomise_norms

# A fault that changes nothing leaves float64's own roundings, of which there are some thousands.
_NOTHING = 1e-12
# From so many parameters on, a network is large: fewer places are tried, and fewer rows in float64.
LARGE = 1_000_000
_ROWS, _ROWS_OF_LARGE = 16, 3
_DOUBLE = {
    TensorProto.FLOAT16: TensorProto.DOUBLE,
    TensorProto.BFLOAT16: TensorProto.DOUBLE,
    TensorProto.FLOAT: TensorProto.DOUBLE,
}
Runner = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Verdict:
    """What became of a fault: "caught", "same" (the file is the same function, in float64), or "missed"."""

    network: str
    precision: str
    file: str
    kind: str
    place: str
    what: str


class Proved:
    """The export of a network of models/ up to its fold, which no precision changes: proved once for all of them."""

    def __init__(self, name: str) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            target = resolve(name)
        module = target.module if name in TRAINED else randomise_norms(target.module)
        self.name = name
        self.parameters = sum(parameter.numel() for parameter in module.parameters())
        self._request = Request(
            module=module,
            example_inputs=target.example_inputs,
            name=name,
            version=1,
            source=name,
            dynamic_axes=target.dynamic_axes,
            input_names=target.input_names,
            output_names=None,
            together=False,
            max_batch_size=DEFAULT_MAX_BATCH_SIZE,
            opset=None,
            precision=PRECISIONS["fp32"],
            forms=chosen_forms(None, PRECISIONS["fp32"], None),
            labels=None,
            all_sizes=False,
            tolerance=None,
            folder=Path(),
        )
        network = steps.copy_network(self._request)
        captured = steps.capture_network(self._request, network)
        self._answers = steps.run_eager(self._request, network, captured)
        self._folded = steps.fold(captured, self._answers)
        self.example = captured.origin.example

    def files(self, precision: str, folder: Path) -> "Files":
        """Both files in precision, or the one that it has, written to folder and verified."""
        chosen = PRECISIONS[precision]
        forms = chosen_forms(None, chosen, None)
        request = dataclasses.replace(self._request, precision=chosen, folder=folder, forms=forms)
        graph, cases = self._folded.graph, self._answers.cases
        outputs = outputs_of(graph.output_names, graph.fixed_axes(), cases, chosen, {})
        assert all(output.scale is not None for output in outputs)  # else the cases hang on the precision
        check_conditioned(outputs, chosen, lambda _: None)
        answers = dataclasses.replace(self._answers, outputs=outputs)
        converted = steps.set_precision(request, self._folded, answers)
        script = steps.write_torchscript(request, converted)
        onnx_form = steps.write_onnx(request, converted) if forms.has(ONNX) else None
        made = Files(request, answers, converted, script, onnx_form)
        made.verify_torchscript()
        if onnx_form is not None:
            made.verify_onnx(onnx_form)
        return made


@dataclass(frozen=True)
class Files:
    """The files of one precision, and what an export knows when it verifies them. onnx: None where it writes none."""

    request: Request
    answers: steps.Answers
    converted: Converted
    torchscript: Path
    onnx: steps.WrittenOnnx | None

    @property
    def graph_module(self) -> fx.GraphModule:
        """What both were written from."""
        return self.converted.captured.graph_module

    def verify_torchscript(self) -> None:
        steps.verify_torchscript(self.torchscript, self.request, self.converted, self.answers)

    def verify_onnx(self, onnx_form: steps.WrittenOnnx) -> None:
        steps.verify_onnx(onnx_form, self.request, self.converted, self.answers)


class Trial:
    """The files of a network in a precision: right ones, verified, to be made wrong.

    most: places of each kind of fault in a file. seed: which ones. known: verdicts of an earlier run, not tried again.
    """

    def __init__(
        self,
        proved: Proved,
        precision: str,
        folder: Path,
        most: int,
        seed: int = 0,
        known: Sequence[Verdict] = (),
    ) -> None:
        self.name, self.precision = proved.name, precision
        self._files = proved.files(precision, folder)
        self._most, self._seed = most, seed
        self._known = {(v.file, v.kind, v.place): v for v in known}
        # Other rows than the proof has seen: whether two files are the same function is not asked of its own cases.
        rows = _ROWS if proved.parameters < LARGE else _ROWS_OF_LARGE
        self._inputs = random_inputs(proved.example, rows, seed=999)

    def torchscript(self) -> Iterator[Verdict]:
        """Every fault of in_graph.py."""
        path, graph_module = self._files.torchscript, self._files.graph_module
        right = _torchscript_in_float64(path, self._inputs)

        def try_one(wrong: fx.GraphModule) -> str:
            if self._is_caught(
                lambda: save_torchscript(to_torchscript(wrong), path), self._files.verify_torchscript
            ):
                return "caught"
            return _same(_torchscript_in_float64(path, self._inputs), right)

        faults = in_graph.faults(graph_module, self._most, self._drawn("model.pt"))
        yield from self._verdicts("model.pt", faults, try_one)
        save_torchscript(to_torchscript(graph_module), path)

    def onnx(self) -> Iterator[Verdict]:
        """Every fault of in_onnx.py; none where there is no ONNX file."""
        written = self._files.onnx
        if written is None:
            return
        path = written.path
        model = onnx.load(path)
        right: tuple[Tensor, ...] | None = None

        def try_one(wrong: onnx.ModelProto) -> str:
            nonlocal right
            if self._is_caught(lambda: save_onnx(wrong, path), lambda: self._files.verify_onnx(written)):
                return "caught"
            right = right or _onnx_in_float64(model)(self._inputs)
            return _same(_onnx_in_float64(wrong)(self._inputs), right)

        faults = in_onnx.faults(model, self._most, self._drawn("model.onnx"))
        yield from self._verdicts("model.onnx", faults, try_one)
        save_onnx(model, path)

    def _drawn(self, file: str) -> str:
        """Other places in each file and precision, the same ones in each run."""
        return f"{self._seed} {self.name} {self.precision} {file}"

    def _verdicts(
        self, file: str, faults: Iterator[tuple[str, str, Callable[[], Any]]], try_one: Callable[[Any], str]
    ) -> Iterator[Verdict]:
        for kind, place, make in faults:
            known = self._known.get((file, kind, place))
            yield known or Verdict(self.name, self.precision, file, kind, place, try_one(make()))

    def _is_caught(self, write: Callable[[], None], verify: Callable[[], None]) -> bool:
        """False where the export would have let the file pass."""
        # Which layer it was is looked for on failure only, takes longest of all, and has its own tests.
        with (
            mock.patch.object(check_files, "_locate_torchscript", return_value=None),
            mock.patch.object(check_files, "_locate_onnx", return_value=None),
        ):
            try:
                write()
                verify()
            except ExportError:
                return True
        return False


def _same(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> str:
    off = max(
        difference(g, w, scale_of([w], range(1, w.dim()))).max_rel for g, w in zip(got, want, strict=True)
    )
    return "same" if off <= _NOTHING else "missed"


def _torchscript_in_float64(path: Path, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    scripted = load_torchscript(path).double()
    with float64_arithmetic():
        return run_torchscript(scripted, widened(inputs))


def _onnx_in_float64(model: onnx.ModelProto) -> Runner:
    wide = retyped(model, _DOUBLE)
    for (
        node
    ) in wide.graph.node:  # the evaluator knows float32 alone for it, and computes in the type of its input
        for attribute in node.attribute:
            if attribute.name == "stash_type":
                attribute.i = TensorProto.FLOAT
    evaluator = ReferenceEvaluator(wide)

    def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        feeds = {v.name: t.numpy() for v, t in zip(model.graph.input, widened(inputs), strict=True)}
        return tuple(torch.from_numpy(np.asarray(array)) for array in evaluator.run(None, feeds))

    return run


def table(verdicts: list[Verdict], rows: str = "kind") -> str:
    """Kinds (or networks) down, precisions across, as docs/folding.md has it: caught of those that change something."""
    words = list(dict.fromkeys(v.precision for v in verdicts))
    lines = [f"| {rows} | {' | '.join(words)} | changes nothing |", "|---" * (len(words) + 2) + "|"]
    for name in dict.fromkeys(getattr(v, rows) for v in verdicts):
        counts = Counter((v.precision, v.what) for v in verdicts if getattr(v, rows) == name)
        cells = [
            f"{counts[word, 'caught']} of {counts[word, 'caught'] + counts[word, 'missed']}" for word in words
        ]
        same = sum(number for (_, what), number in counts.items() if what == "same")
        lines.append(f"| {name} | {' | '.join(cells)} | {same or ''} |")
    return "\n".join(lines)
