"""TorchScript files of a network, folded and unfolded, as the export writes them; not verified, only to be timed."""

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu.networks import Precision, Subject
from foldserve.models import registry
from foldserve.models.export.capture.capture import CapturedGraph, capture
from foldserve.models.export.capture.graph_copy import without_unused
from foldserve.models.export.fold import fold_batch_norms
from foldserve.models.export.network.example.datatypes import OIP_WORDS
from foldserve.models.export.network.example.example import read_example
from foldserve.models.export.network.module_copy import eval_copy
from foldserve.models.export.precision.convert import convert
from foldserve.models.export.precision.precision import PRECISIONS
from foldserve.models.export.writers.torchscript_writer import save_torchscript, to_torchscript
from foldserve.service.artifact.signature import ANY, Signature, TensorSpec


@dataclass(frozen=True)
class Scripted:
    """Both files, what they take and give, and the rows of the network's own example by input."""

    folded: Path
    unfolded: Path
    signature: Signature
    rows: dict[str, np.ndarray]


def write(subject: Subject, precision: Precision, folder: Path) -> Scripted:
    """Capture the network, and write it with its norms folded and with all of them left."""
    target = registry.resolve(subject.target)
    example = read_example(target.module, target.example_inputs, target.dynamic_axes, target.input_names)
    captured = capture(eval_copy(target.module), example)
    graph = copy.deepcopy(captured.graph_module)
    fold_batch_norms(graph)
    name = f"{subject.key}-{precision.exported}"
    return Scripted(
        folded=_written(captured.with_graph(without_unused(graph)), precision, folder / f"{name}.pt"),
        unfolded=_written(captured, precision, folder / f"{name}-unfolded.pt"),
        signature=_signature(captured),
        rows={
            one: tensor.numpy()
            for one, tensor in zip(captured.input_names, captured.example_inputs, strict=True)
        },
    )


def _written(captured: CapturedGraph, precision: Precision, path: Path) -> Path:
    converted = convert(captured, PRECISIONS[precision.exported], [captured.example_inputs])
    save_torchscript(to_torchscript(converted.captured.graph_module), path)
    return path


@torch.no_grad()
def _signature(captured: CapturedGraph) -> Signature:
    outputs = captured.graph_module(*captured.example_inputs)

    def specs(names: tuple[str, ...], tensors: tuple[torch.Tensor, ...]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(name, OIP_WORDS[tensor.dtype], (ANY, *tensor.shape[1:]))
            for name, tensor in zip(names, tensors, strict=True)
        )

    return Signature(
        specs(captured.input_names, captured.example_inputs), specs(captured.output_names, tuple(outputs))
    )
