"""One class exported, and its files compared with the network by another judge than the export's own proof.

The judge draws its own inputs, with other numbers of rows and other dynamic sizes than the example's, and asks
for the network's answers in float64. A size that the files do not take is asked of nobody, and counts as not compared.
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks.packages.published_class import Inputs, PublishedClass, Size
from benchmarks.published import randomise_norms
from foldserve.models.export import ExportError, ExportResult, export_model
from foldserve.models.export.writers.onnx_writer import run_onnx
from foldserve.models.export.writers.torchscript_writer import load_torchscript, run_torchscript
from foldserve.service.backends.onnxruntime.library import onnxruntime

_ALLOWED = (
    2e-3  # relative to the largest value of an output: float32 through ten or so layers leaves 1e-5 to 1e-4
)
_ROWS = (1, 5)


@dataclass(frozen=True)
class Verdict:
    """kind: right, refused or fault. detail: the largest difference, the reason, or what went wrong.

    compared: at how many of the class's sizes the files were compared with the network.
    """

    kind: str
    detail: str
    compared: int
    cpu_s: float


class Fault(Exception):
    """What is wrong with the files of an export, or with the trial of them."""


def tried(published: PublishedClass) -> Verdict:
    started = time.process_time()
    compared = 0
    try:
        detail, compared = _tried(published)
        kind = "right"
    except ExportError as error:
        kind, detail = "refused", str(error)
    except Fault as error:
        kind, detail = "fault", str(error)
    except Exception as error:  # whatever else comes out is ours to mend, and the table goes on
        kind, detail = "fault", f"{type(error).__name__}: {error}"
    return Verdict(kind, detail, compared, time.process_time() - started)


def draw_weights(network: nn.Module) -> None:
    """Random norms, and random numbers for weights that start as one small number, in place.

    A head of zeros answers nothing but zeros, and behind a layer scale of 1e-6 no fault of the layer can be seen.
    """
    randomise_norms(network)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in network.parameters():
            if (
                weight.numel() > 1
                and bool((weight == weight.flatten()[0]).all())
                and float(weight.abs().max()) < 0.1
            ):
                weight.copy_(torch.rand(weight.shape, generator=generator) * 0.4 - 0.2)


def _tried(published: PublishedClass) -> tuple[str, int]:
    """The largest difference with what was narrowed, and the number of sizes. Raises: Fault."""
    torch.manual_seed(0)
    network = published.build().eval()
    draw_weights(network)
    with tempfile.TemporaryDirectory() as folder:
        example = published.inputs(3, published.sizes[0])
        result = export_model(network, example, folder, name="network", dynamic_axes=published.axes or None)
        worst, compared = 0.0, 0
        for size in published.sizes:
            if _in_range(published, size, result.report.get("dims", {})):
                worst = max(worst, *_differences(published, size, network.double(), result))
                compared += 1
    if not compared:
        raise Fault(f"the files take none of the sizes {list(published.sizes)}: {result.report.get('dims')}")
    narrowed = "; narrowed: " + str(result.report["narrowed"]) if result.report.get("narrowed") else ""
    lacking = "".join(
        f"; {e['file']} not written: {e['reason']}" for e in result.report.get("not_written", ())
    )
    return f"{worst:.0e}{narrowed}{lacking}", compared


def _differences(
    published: PublishedClass, size: Size, network: nn.Module, result: ExportResult
) -> Iterator[float]:
    """Of both files at this size, for each number of rows. The network is in float64, its inputs made so with it.

    Raises: Fault where a file answers otherwise, or the network answers one number whatever is put in.
    """
    files = _opened(result)
    for rows in _ROWS:
        inputs = published.inputs(rows, size)
        wanted = _answers(network, inputs)
        if any(bool((answer == answer.flatten()[0]).all()) for answer in wanted if answer.numel() > 1):
            raise Fault(
                "an output of the network itself is one number everywhere, which no file can get wrong"
            )
        tensors = list(inputs.values()) if isinstance(inputs, dict) else list(inputs)
        for file, run in files.items():
            difference = _worst(wanted, run(tensors), file)
            if not difference < _ALLOWED:
                raise Fault(
                    f"{file} answers otherwise for {rows} rows of {size}: {difference:.0e} of {_ALLOWED:.0e}"
                )
            yield difference


def _opened(result: ExportResult) -> dict[str, Callable[[list[Tensor]], list[Tensor]]]:
    """The name of each file that was written → a run of it."""
    files: dict[str, Callable[[list[Tensor]], list[Tensor]]] = {}
    if result.torchscript_path is not None:
        scripted = load_torchscript(result.torchscript_path)
        files["model.pt"] = lambda tensors: list(run_torchscript(scripted, tuple(tensors)))
    if result.onnx_path is not None:
        session = onnxruntime.InferenceSession(result.onnx_path, providers=["CPUExecutionProvider"])
        files["model.onnx"] = lambda tensors: list(run_onnx(session, tuple(tensors)))
    return files


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


def _worst(wanted: list[Tensor], got: list[Tensor], file: str) -> float:
    if [t.shape for t in wanted] != [t.shape for t in got]:
        shapes = f"{[tuple(t.shape) for t in got]} instead of {[tuple(t.shape) for t in wanted]}"
        raise Fault(f"{file} answers in the shapes {shapes}")
    worst = 0.0
    for a, b in zip(wanted, got, strict=True):
        scale = float(a.double().abs().max()) or 1.0
        difference = float((a.double() - b.double()).abs().max()) / scale
        worst = difference if math.isnan(difference) else max(worst, difference)
    return worst
