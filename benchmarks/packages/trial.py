"""One class exported, and its files compared with the network by another judge than the export's own proof.

The judge draws its own inputs, with other numbers of rows and other dynamic sizes than the example's, and asks
for the network's answers in float64. A size that the network itself refuses is asked of nobody.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks.packages.published_class import Inputs, PublishedClass, Size
from benchmarks.published import randomise_norms
from models.export import ExportError, ExportResult, export_model
from models.export.to_torchscript import load_torchscript
from service.onnx_runtime import onnxruntime

_ALLOWED = (
    2e-3  # relative to the largest value of an output: float32 through ten or so layers leaves 1e-5 to 1e-4
)
_ROWS = (1, 5)


@dataclass(frozen=True)
class Verdict:
    """kind: right, refused or fault. detail: the largest difference, the reason, or what went wrong."""

    kind: str
    detail: str
    cpu_s: float


def tried(published: PublishedClass) -> Verdict:
    started = time.process_time()
    try:
        kind, detail = _tried(published)
    except ExportError as error:
        kind, detail = "refused", str(error)
    except Exception as error:  # whatever else comes out is ours to mend, and the table goes on
        kind, detail = "fault", f"{type(error).__name__}: {error}"
    return Verdict(kind, detail, time.process_time() - started)


def _tried(published: PublishedClass) -> tuple[str, str]:
    torch.manual_seed(0)
    network = published.build().eval()
    randomise_norms(network)
    with tempfile.TemporaryDirectory() as folder:
        example = published.inputs(3, published.sizes[0])
        result = export_model(network, example, folder, name="network", dynamic_axes=published.axes or None)
        worst = max(_differences(published, network.double(), result))
    narrowed = "; narrowed: " + str(result.report["narrowed"]) if result.report.get("narrowed") else ""
    return ("right" if worst < _ALLOWED else "fault"), f"{worst:.0e}{narrowed}"


def _differences(published: PublishedClass, network: nn.Module, result: ExportResult) -> Iterator[float]:
    """The network is in float64, its inputs made float64 with it."""
    session = onnxruntime.InferenceSession(result.onnx_path, providers=["CPUExecutionProvider"])
    scripted = load_torchscript(result.torchscript_path)
    names = [entry["name"] for entry in result.report["inputs"]]
    for size in published.sizes:
        if not _in_range(published, size, result.report.get("dims", {})):
            continue  # a server answers 400 with the range, and the table tells what was narrowed
        for rows in _ROWS:
            inputs = published.inputs(rows, size)
            wanted = _answers(network, inputs)
            tensors = list(inputs.values()) if isinstance(inputs, dict) else list(inputs)
            given = dict(zip(names, tensors, strict=True))
            with torch.no_grad():
                from_torchscript = pytree.tree_leaves(scripted(*tensors))
            from_onnx = [
                torch.from_numpy(a) for a in session.run(None, {k: t.numpy() for k, t in given.items()})
            ]
            for got in (from_torchscript, from_onnx):
                yield _worst(wanted, got)


def _in_range(published: PublishedClass, size: Size, dims: Mapping[str, Any]) -> bool:
    labels = dict.fromkeys(label for axes in published.axes.values() for label in axes.values())
    told = [(number, dims[label]) for label, number in zip(labels, size, strict=True) if label in dims]
    return all(
        d["min"] <= n and (d["max"] is None or n <= d["max"]) and n % d["multiple_of"] == 0 for n, d in told
    )


def _answers(network: nn.Module, inputs: Inputs) -> list[Tensor]:
    def wide(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    with torch.no_grad():
        if isinstance(inputs, dict):
            answer: Any = network(**{name: wide(tensor) for name, tensor in inputs.items()})
        else:
            answer = network(*map(wide, inputs))
    return [leaf for leaf in pytree.tree_leaves(answer) if isinstance(leaf, Tensor)]


def _worst(wanted: list[Tensor], got: list[Tensor]) -> float:
    if [t.shape for t in wanted] != [t.shape for t in got]:
        raise AssertionError(
            f"shapes {[tuple(t.shape) for t in got]} instead of {[tuple(t.shape) for t in wanted]}"
        )
    worst = 0.0
    for a, b in zip(wanted, got, strict=True):
        scale = float(a.double().abs().max()) or 1.0
        worst = max(worst, float((a.double() - b.double()).abs().max()) / scale)
    return worst
