"""What manifest.json and reference.npz say: pure data from the results of the other steps.

Keys and their meaning are a contract: the server's reader, service/artifact/manifest.py, keeps in step with `manifest`.
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

from foldserve.models.export.artifact.memory import Memory
from foldserve.models.export.artifact.versions import sha256_and_size
from foldserve.models.export.capture.capture import CapturedGraph
from foldserve.models.export.capture.outputs import Outputs
from foldserve.models.export.fold import FoldReport
from foldserve.models.export.network.example.datatypes import OIP_WORDS
from foldserve.models.export.network.example.example import Example
from foldserve.models.export.network.example.row_modes import INDEPENDENT, TOGETHER
from foldserve.models.export.precision.convert import KeptFp32
from foldserve.models.export.precision.precision import Precision
from foldserve.models.export.verify.parity import Parity

FORMAT_VERSION = 1


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
) -> dict[str, Any]:
    """The content of manifest.json. files are hashed now, so they must be complete.

    example: what the network was given, of which captured has the tensors.
    opset: None where there is no ONNX file. not_written: the reason of each file that is not there.
    kept: what stays in float32 in a lower precision, for reasons of this network. converted_weights: types that
    weights of the user's module had and the graph has not.
    parity: "torchscript" and "onnx" for each file that is there, and "fold_float64" and, of an ImageInput,
    "pictures", which are relative only: their scale is float64's. image, labels: how a picture becomes the input, and
    the names of the output's columns. warnings: what the parity does not show, and how to mend that. These three, and
    not_written, are left out where there are none.
    """
    of_files = {form: parity[form].to_manifest() for form in ("torchscript", "onnx") if form in parity}
    in_float64 = {form: parity[form].to_manifest() for form in ("fold_float64", "pictures") if form in parity}
    for entry in in_float64.values():
        del entry["max_abs"], entry["outputs"]
    return {
        "format_version": FORMAT_VERSION,
        "name": name,
        "version": str(version),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "source": source,
        "inputs": [
            {**spec, **_named(axes, len(spec["shape"]), captured.together), **_rows_elsewhere(dim)}
            for spec, axes, dim in zip(
                _specs(captured, "placeholder", captured.input_names),
                captured.dynamic_shapes,
                example.rows_dims,
                strict=True,
            )
        ],
        "outputs": output_specs(captured),
        **_beside(example, captured.outputs),
        "dims": captured.sizes.to_manifest(),
        "narrowed": [{"dim": one.name, "reason": one.reason} for one in captured.sizes.narrowed],
        "opset": opset,
        **_not_written(not_written),
        "precision": precision.word,
        "kept_fp32": [{"where": one.where, "reason": one.reason} for one in kept],
        **_converted(converted_weights),
        "tool_versions": tool_versions(),
        "rows": TOGETHER if captured.together else INDEPENDENT,
        "max_batch_size": max_batch_size,
        "memory": memory.to_manifest(),
        "files": {path.name: _file_entry(path) for path in files},
        "parameter_count": parameters,
        "fold": {
            "found": fold.found,
            "folded": fold.folded,
            "left": [{"where": left.where, "reason": left.reason} for left in fold.left],
        },
        "parity": {**of_files, **in_float64},
        **({"warnings": list(warnings)} if warnings else {}),
        **({} if image is None else {"image": dict(image)}),
        **({} if labels is None else {"labels": list(labels)}),
    }


def write_manifest(content: Mapping[str, Any], path: Path) -> None:
    """Write content as JSON that people can read."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


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


def output_specs(captured: CapturedGraph) -> list[dict[str, Any]]:
    """Name, datatype and shape of each output, and where the network has its rows."""
    specs = _specs(captured, "output", captured.output_names)
    return [
        {**spec, **_rows_elsewhere(output.rows_dim)}
        for spec, output in zip(specs, captured.outputs.kept, strict=True)
    ]


def _specs(captured: CapturedGraph, op: str, names: Sequence[str]) -> list[dict[str, Any]]:
    nodes: list[Any] = _output_nodes(captured)
    if op == "placeholder":
        nodes = [node for node in captured.graph_module.graph.nodes if node.op == "placeholder"]
    return [
        {
            "name": name,
            "datatype": OIP_WORDS[node.meta["val"].dtype],
            "shape": [size if isinstance(size, int) else -1 for size in node.meta["val"].shape],
        }
        for name, node in zip(names, nodes, strict=True)
    ]


def _named(axes: Mapping[int, str], dims: int, together: bool) -> dict[str, Any]:
    """`dims`, what an input's dynamic dims are called, alike for dims of one size; nothing where only rows vary that
    do not belong together.
    """
    if not axes or (set(axes) == {0} and not together):
        return {}
    return {"dims": [axes.get(axis) for axis in range(dims)]}


def _converted(types: Collection[torch.dtype]) -> dict[str, Any]:
    """`converted_weights`, the types' names; nothing where every weight was in float32."""
    return {"converted_weights": sorted(str(t).removeprefix("torch.") for t in types)} if types else {}


def _not_written(reasons: Mapping[str, str]) -> dict[str, Any]:
    """`not_written`, the files that are not there; nothing where both are."""
    missing = [{"file": file, "reason": reason} for file, reason in reasons.items()]
    return {"not_written": missing} if missing else {}


def _rows_elsewhere(dim: int) -> dict[str, Any]:
    """`rows_dim`, where the network itself has the rows that the files have in dim 0; nothing where it is dim 0."""
    return {"rows_dim": dim} if dim else {}


def _beside(example: Example, outputs: Outputs) -> dict[str, Any]:
    """What the network takes and returns beside the files' inputs and outputs; no key where there is none."""
    fixed = [{"name": one.name, "value": _plain(one.value)} for one in example.fixed]
    left_out = [one.to_manifest() for one in outputs.left_out]
    return {key: value for key, value in (("fixed_inputs", fixed), ("left_out", left_out)) if value}


def _plain(value: object) -> bool | int | str | float | None:
    """A fixed value as JSON can hold it."""
    if value is None or isinstance(value, bool | int | str):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else str(value)


def _file_entry(path: Path) -> dict[str, Any]:
    sha256, size = sha256_and_size(path)
    return {"sha256": sha256, "size": size}
