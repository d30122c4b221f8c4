"""What manifest.json and reference.npz say: pure data from the results of the other steps.

Keys and their meaning are a contract with the server, which service/artifact/manifest.py states for both.
"""

import datetime
import importlib.metadata
import json
import math
import platform
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foldserve.models.export.capture.capture import CapturedGraph
from foldserve.models.export.fold import FoldReport
from foldserve.models.export.network.example.datatypes import OIP_WORDS
from foldserve.models.export.network.example.example import Example
from foldserve.models.export.precision.convert import KeptFp32
from foldserve.models.export.precision.precision import Precision
from foldserve.models.export.verify.parity import Parity
from foldserve.service.artifact.file_sums import sum_of
from foldserve.service.artifact.manifest import (
    INDEPENDENT,
    TOGETHER,
    FixedInput,
    Fold,
    LeftOut,
    Manifest,
    Memory,
    Narrowed,
    NotWritten,
    Place,
    TensorEntry,
)


def manifest(
    *,
    name: str,
    version: int,
    source: str,
    example: Example,
    captured: CapturedGraph,
    opset: int | None,
    not_written: Mapping[str, str],
    precision: Precision,
    kept: Sequence[KeptFp32],
    converted_weights: Collection[torch.dtype],
    memory: Memory,
    max_batch_size: int,
    parameters: int,
    fold: FoldReport,
    parity: Mapping[str, Parity],
    warnings: Sequence[str],
    files: Sequence[Path],
    image: Mapping[str, Any] | None,
    labels: Sequence[str] | None,
) -> Manifest:
    """The content of manifest.json. files are hashed now, so they must be complete.

    example: what the network was given, of which captured has the tensors.
    opset: None where there is no ONNX file. not_written: the reason of each file that is not there.
    kept: what stays in float32 in a lower precision, for reasons of this network. converted_weights: types that
    weights of the user's module had and the graph has not.
    parity: "torchscript" and "onnx" for each file that is there, and "fold_float64" and, of an ImageInput,
    "pictures", which are relative only: their scale is float64's. image, labels: how a picture becomes the input, and
    the names of the output's columns. warnings: what the parity does not show, and how to mend that.
    """
    figures = {form: parity[form].to_manifest() for form in ("torchscript", "onnx") if form in parity}
    for form in ("fold_float64", "pictures"):
        if form in parity:
            figures[form] = parity[form].relative_to_manifest()
    return Manifest(
        name=name,
        version=str(version),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        source=source,
        inputs=_input_specs(example, captured),
        outputs=output_specs(captured),
        fixed_inputs=tuple(FixedInput(name=one.name, value=_plain(one.value)) for one in example.fixed),
        left_out=tuple(LeftOut(**vars(one)) for one in captured.outputs.left_out),
        dims=captured.sizes.to_manifest(),
        narrowed=tuple(Narrowed(dim=one.name, reason=one.reason) for one in captured.sizes.narrowed),
        opset=opset,
        not_written=tuple(NotWritten(file=file, reason=reason) for file, reason in not_written.items()),
        precision=precision.word,
        kept_fp32=tuple(Place(where=one.where, reason=one.reason) for one in kept),
        converted_weights=tuple(sorted(str(t).removeprefix("torch.") for t in converted_weights)),
        tool_versions=tool_versions(),
        rows=TOGETHER if captured.together else INDEPENDENT,
        max_batch_size=max_batch_size,
        memory=memory,
        files={path.name: sum_of(path) for path in files},
        parameter_count=parameters,
        fold=Fold(
            found=fold.found,
            folded=fold.folded,
            left=tuple(Place(where=left.where, reason=left.reason) for left in fold.left),
        ),
        parity=figures,
        warnings=tuple(warnings),
        image=image,
        labels=tuple(labels or ()),
    )


def write_manifest(content: Manifest, path: Path) -> None:
    """Write content as JSON that people can read."""
    path.write_text(json.dumps(content.to_json(), indent=2) + "\n", encoding="utf-8")


def write_reference(
    captured: CapturedGraph, inputs: Sequence[Tensor], outputs: Sequence[Tensor], path: Path
) -> None:
    """Write inputs and eager outputs as `input.<name>` and `output.<name>`, in the served types."""
    served = [node.meta["val"].dtype for node in _output_nodes(captured)]
    arrays = {f"input.{n}": t.numpy() for n, t in zip(captured.input_names, inputs, strict=True)}
    arrays |= {
        f"output.{n}": t.to(dtype).numpy()
        for n, t, dtype in zip(captured.output_names, outputs, served, strict=True)
    }
    with path.open("wb") as file:
        np.savez(
            file, allow_pickle=False, **{key: np.asarray(value, order="C") for key, value in arrays.items()}
        )


def count_parameters(module: nn.Module) -> int:
    """How many numbers module learns; tied parameters count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def tool_versions() -> dict[str, str]:
    """The versions of everything that has a say in the files."""
    return {
        "foldserve": _version("foldserve"),
        "torch": torch.__version__,
        "onnx": _version("onnx"),
        "onnxscript": _version("onnxscript"),
        "onnxruntime": _version("onnxruntime-gpu", "onnxruntime"),
        "python": platform.python_version(),
    }


def _version(*distributions: str) -> str:
    for distribution in distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def _output_nodes(captured: CapturedGraph) -> list[Any]:
    return list(captured.graph_module.graph.output_node().args[0])  # type: ignore[arg-type]


def output_specs(captured: CapturedGraph) -> tuple[TensorEntry, ...]:
    """Name, datatype and shape of each output, and where the network has its rows."""
    outputs = zip(captured.output_names, _output_nodes(captured), captured.outputs.kept, strict=True)
    return tuple(_spec(name, node, rows_dim=output.rows_dim) for name, node, output in outputs)


def _input_specs(example: Example, captured: CapturedGraph) -> tuple[TensorEntry, ...]:
    nodes = [node for node in captured.graph_module.graph.nodes if node.op == "placeholder"]
    return tuple(
        _spec(name, node, rows_dim=dim, dims=_names_of_dims(axes, node, captured.together))
        for name, node, axes, dim in zip(
            captured.input_names, nodes, captured.dynamic_shapes, example.rows_dims, strict=True
        )
    )


def _spec(name: str, node: Any, rows_dim: int, dims: tuple[str | None, ...] | None = None) -> TensorEntry:
    value = node.meta["val"]
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return TensorEntry(name=name, datatype=OIP_WORDS[value.dtype], shape=shape, dims=dims, rows_dim=rows_dim)


def _names_of_dims(axes: Mapping[int, str], node: Any, together: bool) -> tuple[str | None, ...] | None:
    """What an input's dynamic dims are called, alike for dims of one size; None where only rows vary that do not belong
    together.
    """
    if not axes or (set(axes) == {0} and not together):
        return None
    return tuple(axes.get(axis) for axis in range(node.meta["val"].dim()))


def _plain(value: object) -> bool | int | str | float | None:
    """A fixed value as JSON can hold it."""
    if value is None or isinstance(value, bool | int | str):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else str(value)
