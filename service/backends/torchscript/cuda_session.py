"""A TorchScript module on a GPU: pinned memory on the way in and out, a stream of its own, one wait for each batch.

The module is frozen (its weights become constants) and optimised for inference. torch keeps one allocator, and one
setting of TF32, for the whole process.
"""

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foldserve.service.artifact.signature import ANY, Signature
from foldserve.service.backends.base import DeviceLost, LoadError, OutOfMemory
from foldserve.service.backends.cuda.errors import load_error, understood
from foldserve.service.backends.torchscript.outputs import as_sequence

_log = logging.getLogger("foldserve.worker")

_MOST_OFF = 1e-3
"""How far optimising may move answers; the comparison with the reference comes on top, with the export's tolerance."""
_tf32: dict[str, bool] = {}
"""What this process's torch is set to, under "tf32", once a session has set it."""


class TorchScriptCudaSession:
    """A frozen module on a GPU. See base.Session.

    Args:
        rows: of the largest batch for which pinned memory is kept; 0 = none.
    """

    keeps_outputs = False

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
        if not self._rows or len(array) > self._rows:
            # A copy in any case (read-only memory besides, of which torch warns): the module may work in place.
            owned = array if array.flags.writeable else array.copy()
            return torch.from_numpy(owned).to(self._device, copy=True)
        rows = len(array)
        staging = self._host[name][:rows]
        if array.ctypes.data != staging.ctypes.data:
            np.copyto(staging, array, casting="no")
        return self._pinned[name][:rows].to(self._device, non_blocking=True, copy=True)

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
        optimised, notes = frozen(module, _example(signature, device))
        torch.cuda.synchronize(
            device
        )  # weights are laid out on another stream than the one that will read them
        return TorchScriptCudaSession(optimised, signature, device, rows, notes)
    except (RuntimeError, OutOfMemory) as error:
        raise load_error(str(path), f"cannot be prepared for {device}", error) from error


def set_tf32(allowed: bool) -> None:
    """Allow or forbid TF32 in torch. Raises: LoadError when a model of this process needs it otherwise."""
    if _tf32.setdefault("tf32", allowed) is not allowed:
        raise LoadError(
            f"`session: tf32` is {str(allowed).lower()} here and {str(not allowed).lower()} for another TorchScript "
            "model; torch has one setting for a process: make them the same, or use `backend: onnxruntime` for one"
        )
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def frozen(module: torch.jit.ScriptModule, example: Sequence[torch.Tensor]) -> tuple[Any, list[str]]:
    """The module with its weights as constants, optimised for inference where that keeps its answers.

    Args:
        example: inputs to compare the answers on; none = leave it at freezing.
    Returns: what to run, and notes that say why it is not all of that.
    """
    with warnings.catch_warnings():
        # torch 2.13 calls TorchScript deprecated at each call; it is what this backend is for.
        warnings.simplefilter("ignore", DeprecationWarning)
        best: Any = module
        try:
            best = torch.jit.freeze(module)
            if not example:
                return best, []
            optimised = torch.jit.optimize_for_inference(torch.jit.freeze(module))
            off = _difference(optimised, module, example)
        except RuntimeError as error:
            if isinstance(found := understood(error), DeviceLost | OutOfMemory):
                raise found from error
            done = "as it is, not frozen" if best is module else "frozen and not optimised"
            # What torch says holds the module's source, and notes are read by everybody.
            _log.warning("TorchScript is run %s: %s", done, error)
            return best, [
                f"TorchScript is run {done}, for torch cannot do that to it; the server's log says why"
            ]
        if not off <= _MOST_OFF:
            return best, [f"TorchScript is run frozen and not optimised, which moved answers by {off:.3g}"]
        return optimised, []


@torch.inference_mode()
def _difference(optimised: Any, module: Any, example: Sequence[torch.Tensor]) -> float:
    """The largest difference of the two's answers, relative to the largest value of that output."""
    off = [0.0]
    for _ in range(3):  # the first runs are watched, and the code compiled for what they saw
        # Copies: a module may work in place on what it is given.
        found, wanted = (
            _tensors(either(*(one.clone() for one in example))) for either in (optimised, module)
        )
        for got, want in zip(found, wanted, strict=True):
            largest = want.double().abs().max().item() or 1.0
            off.append((got.double() - want.double()).abs().max().item() / largest)
    return float(np.max(off))  # of which one may be nan: Python's max would pass over it


def _tensors(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return list(result.values() if isinstance(result, Mapping) else result)


def _example(signature: Signature, device: torch.device) -> list[torch.Tensor]:
    """Two rows for each input (a request where none are counted), random where they are floats and zero where not; none
    where dims may be of any size."""
    if any(ANY in spec.row_shape for spec in signature.inputs):
        return []
    rng = np.random.default_rng(0)
    arrays = (
        (rng.standard_normal if spec.dtype.kind == "f" else np.zeros)(spec.of_rows(2, spec.row_shape)).astype(
            spec.dtype
        )
        for spec in signature.inputs
    )
    return [torch.from_numpy(array).to(device) for array in arrays]


def _pinned_like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
