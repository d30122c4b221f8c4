"""One export whose files are made wrong, one fault at a time, and verified each time as the export does it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import torch
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from models.errors import ExportError
from models.export import pipeline
from models.export.difference import difference, scale_of
from models.export.exactness import retyped, torchscript_in_float64
from models.export.forms import chosen_forms
from models.export.precision import PRECISIONS
from models.export.sampling import random_inputs
from models.export.to_onnx import save_onnx
from models.export.to_torchscript import save_torchscript, to_torchscript
from models.registry import resolve
from tests.models.export.conftest import TRAINED
from tests.models.export.wrong import in_graph, in_onnx
from tests.models.support import randomise_norms

# A fault that changes nothing leaves float64's own roundings, of which there are some thousands.
_NOTHING = 1e-12
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


class Trial:
    """The export of a network of models/ in a precision, its right files written and verified."""

    def __init__(self, name: str, precision: str, folder: Path) -> None:
        self.name, self.precision = name, precision
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            target = resolve(name)
        module = target.module if name in TRAINED else randomise_norms(target.module)
        self._job = pipeline.Job(
            module=module,
            example_inputs=target.example_inputs,
            name=name,
            version=1,
            source=name,
            dynamic_axes=target.dynamic_axes,
            input_names=target.input_names,
            output_names=None,
            together=False,
            max_batch_size=pipeline.DEFAULT_MAX_BATCH_SIZE,
            opset=None,
            precision=PRECISIONS[precision],
            forms=chosen_forms(None, PRECISIONS[precision], None),
            labels=None,
            all_sizes=False,
            tolerance=None,
            folder=folder,
        )
        for step, run in pipeline.STEPS:
            if step != "write manifest":
                run(self._job)
        # Other rows than the proof has seen: whether two files are the same function is not asked of its own cases.
        self._inputs = random_inputs(self._job.example, 16, seed=999)

    def torchscript(self, most: int) -> list[Verdict]:
        """Every fault of in_graph.py at `most` places of each kind."""
        path = self._job.folder / "model.pt"
        right = torchscript_in_float64(path)(self._inputs)
        verdicts = []
        for kind, place, make in in_graph.faults(self._job.converted.captured.graph_module, most):
            what = self._tried(
                lambda make=make: save_torchscript(to_torchscript(make()), path), pipeline._verify_torchscript
            )
            if not what:
                what = _same(torchscript_in_float64(path)(self._inputs), right)
            verdicts.append(Verdict(self.name, self.precision, "model.pt", kind, place, what))
        save_torchscript(to_torchscript(self._job.converted.captured.graph_module), path)
        return verdicts

    def onnx(self, most: int) -> list[Verdict]:
        """Every fault of in_onnx.py at `most` places of each kind; none where there is no ONNX file."""
        path = self._job.folder / "model.onnx"
        if not path.exists():
            return []
        model = onnx.load(path)
        right: tuple[Tensor, ...] | None = None
        verdicts = []
        for kind, place, make in in_onnx.faults(model, most):
            wrong = make()
            what = self._tried(lambda wrong=wrong: save_onnx(wrong, path), pipeline._verify_onnx)
            if not what:
                right = right or _onnx_in_float64(model)(self._inputs)
                what = _same(_onnx_in_float64(wrong)(self._inputs), right)
            verdicts.append(Verdict(self.name, self.precision, "model.onnx", kind, place, what))
        save_onnx(model, path)
        return verdicts

    def _tried(self, write: Callable[[], None], verify: Callable[[pipeline.Job], None]) -> str:
        """ "caught", or nothing where the export would have let the file pass."""
        # Which layer it was is looked for on failure only, takes longest of all, and has its own tests.
        with (
            mock.patch.object(pipeline, "_locate_torchscript", return_value=None),
            mock.patch.object(pipeline, "_locate_onnx", return_value=None),
        ):
            try:
                write()
                verify(self._job)
            except ExportError:
                return "caught"
        return ""


def _same(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> str:
    off = max(
        difference(g, w, scale_of([w], range(1, w.dim()))).max_rel for g, w in zip(got, want, strict=True)
    )
    return "same" if off <= _NOTHING else "missed"


def _onnx_in_float64(model: onnx.ModelProto) -> Runner:
    evaluator = ReferenceEvaluator(retyped(model, _DOUBLE))

    def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        wide = [t.double() if t.is_floating_point() else t for t in inputs]
        feeds = {v.name: t.numpy() for v, t in zip(model.graph.input, wide, strict=True)}
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
