"""A TorchScript module on a GPU: pinned memory on the way in and out, a stream of its own, one wait for each batch.

The module is frozen (its weights become constants) and optimised for inference. torch keeps one allocator, and one
setting of TF32, for the whole process.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from service.backends.base import DeviceLost, LoadError, OutOfMemory
from service.backends.cuda_errors import understood
from service.backends.torchscript_outputs import as_sequence
from service.signature import ANY, Signature

_tf32: dict[str, bool] = {}
"""What this process's torch is set to, under "tf32", once a session has set it."""


class TorchScriptCudaSession:
    """A frozen module on a GPU. See base.Session.

    Args:
        rows: of the largest batch for which pinned memory is kept; 0 = none.
    """

    def __init__(
        self, module: Any, signature: Signature, device: torch.device, rows: int, notes: Sequence[str] = ()
    ) -> None:
        self.notes = notes
        self._module = module
        self._signature = signature
        self._outputs = tuple(signature.outputs_by_name)
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        fixed = not any(ANY in spec.row_shape for spec in signature.inputs)
        self._rows = rows if fixed else 0
        # torch frees pinned memory with its tensor, so the tensors are kept beside the arrays that show them.
        self._pinned: dict[str, torch.Tensor] = {}
        self._host: dict[str, np.ndarray] = {}
        if self._rows:
            for spec in signature.inputs:
                array = np.empty((self._rows, *spec.row_shape), spec.dtype)
                self._pinned[spec.name] = torch.from_numpy(array).pin_memory()
                self._host[spec.name] = self._pinned[spec.name].numpy()

    def host_buffers(self, rows: int) -> Mapping[str, np.ndarray] | None:
        """See base.Session."""
        if rows > self._rows:
            return None
        return {name: array[:rows] for name, array in self._host.items()}

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See base.Session."""
        try:
            with torch.cuda.stream(self._stream):
                given = [self._on_device(spec.name, inputs[spec.name]) for spec in self._signature.inputs]
                results = as_sequence(self._module(*given), self._outputs)
                # Memory for each answer from torch's cache of pinned blocks: the caller keeps it as long as it likes.
                answers = [_pinned_like(result) for result in results]
                for answer, result in zip(answers, results, strict=True):
                    answer.copy_(result, non_blocking=True)
            self._stream.synchronize()
        except Exception as error:
            raise self._meaning(error) from error
        return {name: answer.numpy() for name, answer in zip(self._outputs, answers, strict=True)}

    def _on_device(self, name: str, array: np.ndarray) -> torch.Tensor:
        rows = len(array)
        if rows > self._rows:
            # torch warns of read-only memory (a view of a request's body), and could write to it.
            owned = array if array.flags.writeable else array.copy()
            return torch.from_numpy(owned).to(self._device)
        staging = self._host[name][:rows]
        if array.ctypes.data != staging.ctypes.data:
            np.copyto(staging, array, casting="no")
        return self._pinned[name][:rows].to(self._device, non_blocking=True)

    def _meaning(self, error: Exception) -> Exception:
        found = (
            OutOfMemory(str(error)) if isinstance(error, torch.cuda.OutOfMemoryError) else understood(error)
        )
        try:
            self._stream.synchronize()  # copies may still use the memory
            if isinstance(found, OutOfMemory):
                torch.cuda.empty_cache()  # freed blocks too small for this batch may make one that a smaller fits in
        except Exception as later:
            return found if isinstance(found, DeviceLost) else understood(later)
        return found


def load_on_cuda(
    module: torch.jit.ScriptModule,
    path: Path,
    signature: Signature,
    device: torch.device,
    rows: int,
    tf32: bool,
) -> TorchScriptCudaSession:
    """Prepare a loaded module for a GPU. Raises: LoadError, DeviceLost."""
    set_tf32(tf32)
    try:
        optimised, notes = frozen(module)
        torch.cuda.synchronize(
            device
        )  # weights are laid out on another stream than the one that will read them
        return TorchScriptCudaSession(optimised, signature, device, rows, notes)
    except RuntimeError as error:
        if isinstance(found := understood(error), DeviceLost):
            raise found from error
        raise LoadError(f"{path} cannot be prepared for {device}: {error}") from error


def set_tf32(allowed: bool) -> None:
    """Allow or forbid TF32 in torch. Raises: LoadError when a model of this process needs it otherwise."""
    if _tf32.setdefault("tf32", allowed) is not allowed:
        raise LoadError(
            f"`session: tf32` is {str(allowed).lower()} here and {str(not allowed).lower()} for another TorchScript "
            "model; torch has one setting for a process: make them the same, or use `backend: onnxruntime` for one"
        )
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def frozen(module: torch.jit.ScriptModule) -> tuple[Any, list[str]]:
    """The module with its weights as constants, optimised for inference; or as it is, with the reason as a note."""
    with warnings.catch_warnings():
        # torch 2.13 calls TorchScript deprecated at each call; it is what this backend is for.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return torch.jit.optimize_for_inference(torch.jit.freeze(module)), []
        except RuntimeError as error:
            if isinstance(found := understood(error), DeviceLost):
                raise found from error
            line = " ".join(str(error).split())[:300]
            return module, [f"TorchScript is run as it is, not frozen and optimised: {line}"]


def _pinned_like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
