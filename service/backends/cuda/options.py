"""The options of onnxruntime's CUDA provider for a session. Pure.

Whatever config.yaml's `session.providers` says about the provider wins, key by key.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from foldserve.service.backends.base import SessionOptions, Workload

CUDA: Final = "CUDAExecutionProvider"
CPU: Final = "CPUExecutionProvider"

Providers = list[tuple[str, Mapping[str, Any]]]

_MEMORY_FACTOR: Final = 3
_MEMORY_ALLOWANCE_BYTES: Final = 2**30


@dataclass(frozen=True)
class CudaProviders:
    """The providers of a session on a GPU.

    providers: most wanted first, with their options.
    ours: whether the session runs on the stream, and on the device, that it was given; then it may be bound to
        memory there.
    graphs: whether the provider is asked for CUDA graphs.
    """

    providers: Providers
    ours: bool
    graphs: bool


def cuda_providers(
    number: int, stream: int, graphs: bool, options: SessionOptions, limit_bytes: int | None
) -> CudaProviders:
    """The providers for GPU `number`.

    Args:
        stream: a cudaStream_t on which the session is to run.
        graphs: whether to ask for CUDA graphs, where the operator does not say otherwise.
        limit_bytes: see memory_limit.
    """
    defaults = {
        "device_id": str(number),
        "user_compute_stream": str(stream),
        # EXHAUSTIVE, onnxruntime's default, measures again at every new shape, and a batch is a shape.
        "cudnn_conv_algo_search": "HEURISTIC",
        # The other strategy doubles: past a large bucket it would take as much again and never use it.
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": str(int(options.tf32)),
        "prefer_nhwc": str(int(options.nhwc)),
        "enable_cuda_graph": str(int(graphs)),
    }
    if limit_bytes is not None:
        defaults["gpu_mem_limit"] = str(limit_bytes)
    given = list(options.providers) or [(CUDA, {}), (CPU, {})]
    providers: Providers = [
        (name, {**defaults, **theirs} if name == CUDA else theirs) for name, theirs in given
    ]
    first, settled = providers[0]
    ours = first == CUDA and all(
        str(settled[key]) == defaults[key] for key in ("device_id", "user_compute_stream")
    )
    return CudaProviders(providers, ours, ours and str(settled["enable_cuda_graph"]).lower() in ("1", "true"))


def memory_limit(options: SessionOptions, workload: Workload, any_dims: bool) -> int | None:
    """Bytes of device memory that onnxruntime's arena may take for a session; None = all there are.

    3 x (weights + largest bucket x row) + 1 GiB. Three times, because the arena holds weights twice while it turns
    them into the layout that a kernel wants, and may hold a chunk of its own for each of several buckets; the GiB is
    for what cuDNN works with. It is a fence around one model, for the sake of those beside it, and no measure of
    what the model takes.

    Args:
        any_dims: whether rows have dims of any size: then no row is like the one that was measured.
    """
    if options.memory_limit_bytes is not None:
        return options.memory_limit_bytes
    weights, row = workload.weights_bytes, workload.row_bytes
    if any_dims or weights is None or row is None or not workload.buckets:
        return None
    return _MEMORY_FACTOR * (weights + workload.buckets[-1] * row) + _MEMORY_ALLOWANCE_BYTES
