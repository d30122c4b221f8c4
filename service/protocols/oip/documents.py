"""What metadata and configuration say of a model, as the protocol and Triton's ModelConfig write it. Pure functions."""

from collections.abc import Sequence
from typing import Any, Final

from foldserve.service.artifact.signature import TensorSpec
from foldserve.service.engine.served import ServedBy, ServedModel, ServedVersion

PLATFORMS: Final = {"onnxruntime": "onnx_onnxv1", "torchscript": "pytorch_torchscript"}
"""By backend; the protocol's own words."""
_BACKENDS: Final = {"onnxruntime": "onnxruntime", "torchscript": "pytorch"}
"""By backend; Triton's words."""
_CONFIG_TYPES: Final = {"BYTES": "TYPE_STRING"}


def model_metadata(model: ServedModel, version: ServedVersion) -> dict[str, Any]:
    """The metadata of a model; of which version the tensors are, when one was asked for."""
    return {
        "name": model.name,
        "versions": list(model.versions),
        "platform": PLATFORMS[version.backend],
        "inputs": [_tensor(spec) for spec in version.signature.inputs],
        "outputs": [_tensor(spec) for spec in version.signature.outputs],
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def model_config(model: ServedModel, version: ServedVersion, served_by: Sequence[ServedBy]) -> dict[str, Any]:
    """A version's ModelConfig: what tools like perf_analyzer need, and nothing that is not so."""
    batches = version.max_batch_size > 0
    buckets = sorted({bucket for by in served_by for bucket in by.batch_buckets})
    gpus = sorted({int(by.device.partition(":")[2]) for by in served_by if by.device.startswith("cuda:")})
    return {
        "name": model.name,
        "platform": PLATFORMS[version.backend],
        "backend": _BACKENDS[version.backend],
        "version_policy": {"specific": {"versions": [int(one) for one in model.versions]}},
        "max_batch_size": version.max_batch_size,
        "input": [_config_tensor(spec, batches) for spec in version.signature.inputs],
        "output": [_config_tensor(spec, batches) for spec in version.signature.outputs],
        "instance_group": [
            {
                "name": model.name,
                "kind": "KIND_GPU" if gpus else "KIND_CPU",
                "count": max(1, len(served_by)),
                "gpus": gpus,
            }
        ],
        **_dynamic_batching(version, buckets),
    }


def _dynamic_batching(version: ServedVersion, buckets: list[int]) -> dict[str, Any]:
    """Of a model that batches, or has priority levels: Triton's word for what orders a queue, too."""
    said: dict[str, Any] = {"preferred_batch_size": buckets} if version.max_batch_size > 0 else {}
    if version.priority_levels > 1:
        said["priority_levels"] = version.priority_levels
        said["default_priority_level"] = version.default_priority_level
    return {"dynamic_batching": said} if said else {}


def _config_tensor(spec: TensorSpec, batches: bool) -> dict[str, Any]:
    """dims: without that of the rows where the model batches, as Triton has it."""
    dims = spec.shape[1:] if batches else spec.shape
    return {
        "name": spec.name,
        "data_type": _CONFIG_TYPES.get(spec.datatype, f"TYPE_{spec.datatype}"),
        "dims": list(dims),
    }
