"""Runs TorchScript files with libtorch: the only file of the server that imports torch."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from service.backends.base import LoadError, SessionOptions, usable_cores
from service.signature import Signature


class TorchScriptSession:
    """A scripted module. Used by one thread at a time."""

    notes: Sequence[str] = ()

    def __init__(self, module: torch.jit.ScriptModule, signature: Signature, device: torch.device) -> None:
        self._module = module
        self._inputs = tuple(signature.inputs_by_name)
        self._outputs = tuple(signature.outputs_by_name)
        self._device = device

    def host_buffers(self, rows: int) -> None:
        """See base.Session."""

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See base.Session."""
        tensors = [self._tensor(inputs[name]) for name in self._inputs]
        results = _as_sequence(self._module(*tensors), self._outputs)
        if len(results) != len(self._outputs):
            raise ValueError(
                f"the module returned {len(results)} tensors, the signature has {len(self._outputs)} outputs"
            )
        return {name: tensor.cpu().numpy() for name, tensor in zip(self._outputs, results, strict=True)}

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        # torch warns of read-only memory (a view of a request's body), and could write to it.
        owned = array if array.flags.writeable else array.copy()
        return torch.from_numpy(owned).to(self._device)


def load_session(
    path: Path, signature: Signature, device: str, options: SessionOptions
) -> TorchScriptSession:
    """Load a TorchScript file on a device. Raises: LoadError."""
    if options.providers:
        raise LoadError(
            "`session: providers` is for the onnxruntime backend; remove it or use `backend: onnxruntime`"
        )
    if device != "cpu" and not torch.cuda.is_available():
        raise LoadError(
            f"torch {torch.__version__} cannot use {device}: install a torch built for CUDA, serve the ONNX "
            "file with `backend: onnxruntime`, or serve with --device cpu"
        )
    torch.set_num_threads(options.threads or usable_cores())
    target = torch.device(device)
    try:
        with warnings.catch_warnings():
            # torch 2.13 calls TorchScript deprecated at each load; it is what this backend is for.
            warnings.simplefilter("ignore", DeprecationWarning)
            module = torch.jit.load(str(path), map_location=target)  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, OSError) as error:
        raise LoadError(f"{path} is not a TorchScript file that torch can load: {error}") from error
    return TorchScriptSession(module.eval(), signature, target)


def _as_sequence(result: Any, names: tuple[str, ...]) -> Sequence[torch.Tensor]:
    """The outputs in the signature's order: a module returns a tensor, a tuple or list, or a dict by name."""
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, Mapping):
        return [result[name] for name in names]
    return list(result)
