"""Runs TorchScript files with libtorch: opens them, and runs them on the CPU.

The torchscript_* files of this folder are the only ones of the server that import torch.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from foldserve.service.artifact.signature import Signature
from foldserve.service.backends.base import (
    LoadError,
    Session,
    SessionOptions,
    Workload,
    native_path,
    usable_cores,
)
from foldserve.service.backends.cuda.errors import load_error
from foldserve.service.backends.torchscript.outputs import as_sequence
from foldserve.service.backends.torchscript.writes import may_write_or_keep


class TorchScriptSession:
    """A scripted module on the CPU."""

    notes: Sequence[str] = ()
    keeps_outputs = False  # a module may give out its buffers, and change them in the next run

    def __init__(self, module: torch.jit.ScriptModule, signature: Signature) -> None:
        self._module = module
        self._inputs = tuple(signature.inputs_by_name)
        self._outputs = tuple(signature.outputs_by_name)
        self._copies = may_write_or_keep(module)

    def host_buffers(self, rows: int) -> None:
        """See base.Session."""

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See base.Session."""
        tensors = [self._tensor(inputs[name]) for name in self._inputs]
        results = as_sequence(self._module(*tensors), self._outputs)
        return {name: tensor.numpy() for name, tensor in zip(self._outputs, results, strict=True)}

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        # torch warns of read-only memory (a view of a request's body), and could write to it.
        return torch.from_numpy(array.copy() if self._copies or not array.flags.writeable else array)


def load_session(
    path: Path, signature: Signature, device: str, options: SessionOptions, workload: Workload
) -> Session:
    """Load a TorchScript file on a device. Raises: LoadError, DeviceLost."""
    not_ours = {
        "providers": options.providers,
        "nhwc": options.nhwc,
        "memory_limit_bytes": options.memory_limit_bytes,
    }
    for key, given in not_ours.items():
        if given:
            raise LoadError(
                f"`session: {key}` is for the onnxruntime backend; remove it or use `backend: onnxruntime`"
            )
    if device != "cpu" and not torch.cuda.is_available():
        raise LoadError(
            f"torch {torch.__version__} cannot use {device}: install a torch built for CUDA, serve the ONNX "
            "file with `backend: onnxruntime`, or serve with --device cpu"
        )
    torch.set_num_threads(options.threads or usable_cores())
    target = torch.device(device)
    file = native_path(path)
    try:
        with warnings.catch_warnings():
            # torch 2.13 calls TorchScript deprecated at each load; it is what this backend is for.
            warnings.simplefilter("ignore", DeprecationWarning)
            module = torch.jit.load(file, map_location=target)  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, OSError) as error:
        raise load_error(str(path), "is not a TorchScript file that torch can load", error) from error
    module.eval()
    if device == "cpu":
        return TorchScriptSession(module, signature)
    # Imported here: on the CPU there is no need of it.
    from foldserve.service.backends.torchscript.cuda_session import load_on_cuda

    rows = workload.buckets[-1] if workload.buckets else 0
    return load_on_cuda(module, path, signature, target, rows, options.tf32)
