"""An ONNX Runtime session on a GPU: memory that stays where it is, one stream, one wait for each batch.

    pinned inputs -> (copy) -> device inputs -> (run, or replay a graph) -> device outputs -> (copy) -> pinned outputs

All of it is put onto one stream, which the provider runs on too (`user_compute_stream`), and the host waits once, at
the end. Two sessions have two streams, so that one copies while the other computes. onnxruntime's own ways to wait
(IOBinding.synchronize_inputs, synchronize_outputs) would wait for the whole device, and so for other sessions.

Needs the sizes of all dims but the rows; a model without them is run plainly, and onnxruntime does the copies.
"""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np

from foldserve.service.artifact.signature import ANY, Signature, TensorSpec
from foldserve.service.backends.cuda.errors import understood
from foldserve.service.backends.cuda.runtime import Cuda
from foldserve.service.backends.onnxruntime.library import onnxruntime as ort

_NO_GRAPH = -1  # onnxruntime's id for a run that neither records nor replays
# Of onnxruntime's OrtMemoryInfo: the names of host memory, CudaPinned being page-locked; and of a GPU's own memory.
_HOST_NAMES = ("Cpu", "CudaPinned")
_DEVICE_NAME, _NVIDIA = "Cuda", 0x10DE

Place = Literal["device", "host", "unknown"]


@dataclass(frozen=True)
class SessionDevice:
    """Where a session's memory is: onnxruntime's name of the kind of device, its number, and its CUDA calls."""

    kind: str
    number: int
    cuda: Cuda


@dataclass(frozen=True)
class _Tensor:
    """One input or output: `host` [most rows, ...] is pinned; `device` its place on the device, 0 = none needed."""

    spec: TensorSpec
    host: np.ndarray
    device: int

    @property
    def row_bytes(self) -> int:
        return self.spec.dtype.itemsize * prod(self.spec.row_shape)


@dataclass(frozen=True)
class _Bound:
    """One batch size: its binding and its options, made once."""

    binding: Any
    options: Any


class OnnxCudaSession:
    """A model on a GPU. See base.Session, cuda_graphs.Capturing.

    Args:
        session: runs on `stream` of `target`.
        rows: of the largest batch that is to be bound; larger ones are run plainly. 0 = nothing may be bound.
    """

    keeps_outputs = False

    def __init__(
        self,
        session: ort.InferenceSession,
        signature: Signature,
        target: SessionDevice,
        stream: int,
        rows: int,
    ) -> None:
        self.notes: Sequence[str] = ()
        self.no_graphs = ""
        self._session: Any = session
        self._target = target
        self._cuda = target.cuda
        self._stream = stream
        self._output_names = list(signature.outputs_by_name)
        self._taken: list[tuple[int, int]] = []  # addresses: pinned, on the device
        self._bound: dict[int, _Bound] = {}
        self._plain = _run_options(_NO_GRAPH)
        fixed = not any(ANY in spec.row_shape for spec in (*signature.inputs, *signature.outputs))
        self._rows = rows if fixed else 0
        self._inputs: tuple[_Tensor, ...] = ()
        self._outputs: tuple[_Tensor, ...] = ()
        if self._rows:
            try:
                self._prepare(signature)
            except BaseException:
                self.close()
                raise

    def host_buffers(self, rows: int) -> Mapping[str, np.ndarray] | None:
        """See base.Session."""
        if rows > self._rows:
            return None
        return {tensor.spec.name: tensor.host[:rows] for tensor in self._inputs}

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See base.Session."""
        try:
            self._cuda.use()
            rows = len(next(iter(inputs.values()))) if self._rows else 0  # else they may have no dims at all
            if not self._rows or rows > self._rows:
                arrays = self._session.run(self._output_names, dict(inputs), self._plain)
                return dict(zip(self._output_names, arrays, strict=True))
            self._run_bound(self._bound.get(rows) or self._bind(rows, _NO_GRAPH), rows, inputs)
        except Exception as error:
            # The wait is for copies that may still use the memory; its status tells whether the device lives.
            raise understood(error, self._cuda.status(self._stream)) from error
        return {tensor.spec.name: tensor.host[:rows] for tensor in self._outputs}

    def capture(self, rows: int) -> None:
        """Record the graph of one batch size, with zeros. onnxruntime first runs it as often as it needs to."""
        self._bind(rows, graph=rows)
        zeros = {tensor.spec.name: tensor.host[:rows] for tensor in self._inputs}
        for array in zeros.values():
            array[:] = 0
        try:
            self.run(zeros)
        except BaseException:
            self._cuda.end_capture(self._stream)
            raise

    def close(self) -> None:
        """Give back the session and its memory; nothing runs any more."""
        self._bound.clear()
        self._session = None
        self._inputs = self._outputs = ()
        self._rows = 0
        for pinned, on_device in self._taken:
            self._cuda.free_host(pinned)
            if on_device:
                self._cuda.free_device(on_device)
        self._taken.clear()
        if self._stream:
            self._cuda.end_stream(self._stream)
            self._stream = 0

    def __del__(self) -> None:
        self.close()

    def _prepare(self, signature: Signature) -> None:
        """Take the memory of all inputs and outputs, for the largest batch."""
        places = tensor_places(self._session)
        if unknown := [name for name, place in places.items() if place == "unknown"]:
            # Bound in the wrong place, an input would be copied once, when it is bound, and never again.
            self._rows = 0
            self.no_graphs = f"onnxruntime does not say where it keeps {', '.join(unknown)}"
            return
        on_host = [name for name, place in places.items() if place == "host"]
        if on_host:
            self.no_graphs = (
                f"the CPU reads or writes {', '.join(on_host)}, and what it does no graph repeats"
            )
        self._inputs = tuple(self._tensor(spec, spec.name in on_host) for spec in signature.inputs)
        self._outputs = tuple(self._tensor(spec, spec.name in on_host) for spec in signature.outputs)

    def _run_bound(self, bound: _Bound, rows: int, inputs: Mapping[str, np.ndarray]) -> None:
        for tensor in self._inputs:
            given, staging = inputs[tensor.spec.name], tensor.host[:rows]
            address = staging.ctypes.data
            if given.ctypes.data != address:
                np.copyto(staging, given, casting="no")
            if tensor.device:
                self._cuda.to_device(tensor.device, address, rows * tensor.row_bytes, self._stream)
            else:
                # Anew for every batch: where onnxruntime wants host memory of another kind, it copies an input when
                # it is bound, and at no other time.
                bound.binding.bind_input(tensor.spec.name, **self._place(tensor, rows))
        self._session.run_with_iobinding(bound.binding, bound.options)
        for tensor in self._outputs:
            if tensor.device:
                self._cuda.to_host(
                    tensor.host.ctypes.data, tensor.device, rows * tensor.row_bytes, self._stream
                )
        self._cuda.synchronize(self._stream)

    def _bind(self, rows: int, graph: int) -> _Bound:
        binding = self._session.io_binding()
        for tensor in self._inputs:
            binding.bind_input(tensor.spec.name, **self._place(tensor, rows))
        for tensor in self._outputs:
            binding.bind_output(tensor.spec.name, **self._place(tensor, rows))
        options = _run_options(graph)
        # The wait comes after the outputs' copies, once.
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        bound = self._bound[rows] = _Bound(binding, options)
        return bound

    def _place(self, tensor: _Tensor, rows: int) -> dict[str, Any]:
        return {
            "device_type": self._target.kind if tensor.device else "cpu",
            "device_id": self._target.number if tensor.device else 0,
            "element_type": tensor.spec.dtype.type,
            "shape": [rows, *tensor.spec.row_shape],
            "buffer_ptr": tensor.device or tensor.host.ctypes.data,
        }

    def _tensor(self, spec: TensorSpec, on_host: bool) -> _Tensor:
        shape = (self._rows, *spec.row_shape)
        size = max(1, prod(shape) * spec.dtype.itemsize)
        pinned = self._cuda.host_memory(size)
        self._taken.append((pinned, 0))
        memory = memoryview((ctypes.c_uint8 * size).from_address(pinned))
        host = np.frombuffer(memory, spec.dtype, prod(shape)).reshape(shape)
        on_device = 0
        if not on_host:
            on_device = self._cuda.device_memory(size)
            self._taken[-1] = (pinned, on_device)
        return _Tensor(spec, host, on_device)


def tensor_places(session: ort.InferenceSession) -> dict[str, Place]:
    """Where the model wants each input, and leaves each output."""
    tensors = [*session.get_inputs(), *session.get_outputs()]
    try:
        infos = [*session.get_input_memory_infos(), *session.get_output_memory_infos()]
    except Exception:  # onnxruntime has no answer for some inputs, such as one that no node reads
        return {tensor.name: "unknown" for tensor in tensors}
    return {tensor.name: _place_of(info) for tensor, info in zip(tensors, infos, strict=True)}


def _place_of(info: Any) -> Place:
    if info.name in _HOST_NAMES or info.device_mem_type == ort.OrtDeviceMemoryType.HOST_ACCESSIBLE:
        return "host"
    return "device" if info.name == _DEVICE_NAME or info.device_vendor_id == _NVIDIA else "unknown"


def _run_options(graph: int) -> Any:
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options
