"""Runs ONNX files with ONNX Runtime, on the CPU or through its CUDA provider: opens and checks them.

On "cuda:N" the session must really run on CUDA: onnxruntime falls back to the CPU with no more than a log
line when the provider's libraries do not load, so the providers it ended up with are compared with those
asked for. How a session runs on a GPU is cuda_session.py's.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foldserve.service.artifact.datatypes import word_for_onnx
from foldserve.service.artifact.signature import ANY, ONE_BY_ONE, Signature, TensorSpec
from foldserve.service.backends.base import (
    InsufficientMemory,
    LoadError,
    OutOfMemory,
    Session,
    SessionOptions,
    Workload,
    native_path,
    usable_cores,
)
from foldserve.service.backends.cuda.errors import load_error
from foldserve.service.backends.cuda.graphs import reason_against, with_graphs
from foldserve.service.backends.cuda.options import CPU, Providers, cuda_providers, memory_limit
from foldserve.service.backends.cuda.runtime import CudaError, open_runtime
from foldserve.service.backends.onnxruntime.assignment import RECORD, on_the_cpu
from foldserve.service.backends.onnxruntime.cuda_session import OnnxCudaSession, SessionDevice
from foldserve.service.backends.onnxruntime.file_check import check_dim_names, check_tensors
from foldserve.service.backends.onnxruntime.library import onnxruntime as ort
from foldserve.service.errors import ConfigError

_NO_NAMES = frozenset({"?", "*", "-1", "None", "unknown"})
"""What converters write for every dim whose name they do not know: it says nothing of sizes."""
# Its warnings at load are about its own optimisations, and its errors are raised: ours to log, in our shape.
_FATAL_ONLY = 4


# onnxruntime 1.31 crashes (SIGSEGV) while it opens an fp16 file on the CPU that has a Transpose of the first two dims
# in front of a product with a weight, as in nn.MultiheadAttention: this fusion and its NchwcTransformer do not go
# together.
_CRASHING_FUSION = "MatmulTransposeFusion"


class OnnxSession:
    """A model in ONNX Runtime on the CPU. run() may be called from several threads (onnxruntime allows it)."""

    notes: Sequence[str] = ()
    keeps_outputs = True  # every run has outputs of its own

    def __init__(self, session: ort.InferenceSession, outputs: tuple[str, ...]) -> None:
        self._session = session
        self._outputs = list(outputs)

    def host_buffers(self, rows: int) -> None:
        """See base.Session."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See base.Session."""
        arrays = self._session.run(self._outputs, dict(inputs))
        return dict(zip(self._outputs, arrays, strict=True))


def load_session(
    path: Path, signature: Signature, device: str, options: SessionOptions, workload: Workload
) -> Session:
    """Load an ONNX file on a device. Raises: LoadError, DeviceLost."""
    if device != "cpu":
        number = int(device.partition(":")[2] or "0")
        return _load_on(
            SessionDevice("cuda", number, open_runtime(number)), path, signature, options, workload
        )
    session = _open_as_exported(path, signature, list(options.providers) or [(CPU, {})], options)
    if workload.shared:
        check_dim_names(path, session)
    return OnnxSession(session, tuple(signature.outputs_by_name))


def _load_on(
    target: SessionDevice, path: Path, signature: Signature, options: SessionOptions, workload: Workload
) -> OnnxCudaSession:
    """Load an ONNX file on a GPU, with its buckets as CUDA graphs where that can be."""
    any_dims = any(ANY in spec.row_shape for spec in (*signature.inputs, *signature.outputs))
    limit_bytes = memory_limit(options, workload, any_dims)
    plan = cuda_providers(target.number, 0, True, options, limit_bytes)
    rows = workload.buckets[-1] if workload.buckets and plan.ours else 0

    where = f"{target.kind}:{target.number}"

    def opened(graphs: bool) -> OnnxCudaSession:
        try:
            target.cuda.use()
            stream = target.cuda.new_stream()
        except (OutOfMemory, CudaError) as error:  # where the process begins to use the device
            raise load_error(
                f"{path} on {where}", "cannot be loaded, for CUDA cannot be used", error
            ) from error
        providers = cuda_providers(target.number, stream, graphs, options, limit_bytes).providers
        try:
            session = _open_as_exported(path, signature, providers, options)
        except BaseException:
            target.cuda.end_stream(stream)
            raise
        try:
            made = OnnxCudaSession(session, signature, target, stream, rows)
        except OutOfMemory as error:
            raise InsufficientMemory(
                f"{path}: there is not enough memory on {where} for a batch of {rows} rows; "
                "lower max_batch_size in config.yaml, or serve fewer models on the device",
                error,
            ) from error
        except CudaError as error:
            raise load_error(f"{path} on {where}", "cannot be loaded", error) from error
        made.notes = tuple(filter(None, [on_the_cpu(session)]))
        if workload.shared:
            check_dim_names(path, session)
        return made

    against = reason_against(options, signature, workload.buckets, plan.graphs)
    session, notes = with_graphs(opened, against, workload.buckets)
    session.notes = (*notes, *session.notes)
    return session


def _open_as_exported(
    path: Path, signature: Signature, providers: Providers, options: SessionOptions
) -> ort.InferenceSession:
    """Open an ONNX file whose inputs and outputs are the signature's. Raises: LoadError, DeviceLost."""
    session = _open(path, providers, options.threads or usable_cores())
    got = session.get_providers()
    missing = [name for name, _ in providers if name not in got]
    if missing:
        raise LoadError(
            f"{path}: onnxruntime could not use {', '.join(missing)} and fell back to {', '.join(got)}; "
            "install the provider's libraries (foldserve[cuda] for CUDA), or serve with --device cpu"
        )
    check_tensors(path, "input", signature.inputs_by_name, session.get_inputs())
    check_tensors(path, "output", signature.outputs_by_name, session.get_outputs())
    return session


def read_signature(path: Path, counts_rows: bool = True) -> Signature:
    """The signature of an ONNX file that has no manifest.

    Args:
        counts_rows: whether dim 0 is to count rows.
    Raises: LoadError when the file cannot be read, or its dim 0 does not count rows.
    """
    session = _open(path, [(CPU, {})], threads=1)  # one thread: no pool is started in the asking process
    try:
        return Signature(
            tuple(_spec(path, "input", tensor, counts_rows) for tensor in session.get_inputs()),
            tuple(_spec(path, "output", tensor, counts_rows) for tensor in session.get_outputs()),
        )
    except (ConfigError, ValueError) as error:
        raise LoadError(f"{path}: {error}") from error


def _open(path: Path, providers: Providers, threads: int) -> ort.InferenceSession:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = _FATAL_ONLY
    # A pool that spins between runs burns the cores it was given while the server is idle.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.add_session_config_entry(RECORD, "1")
    if all(name == CPU for name, _ in providers):
        settings.add_session_config_entry("optimization.disable_specified_optimizers", _CRASHING_FUSION)
    unknown = [name for name, _ in providers if name not in ort.get_available_providers()]
    if unknown:
        raise LoadError(
            f"this onnxruntime has no {', '.join(unknown)}, only {', '.join(ort.get_available_providers())}; "
            "install onnxruntime-gpu, or change `session: providers` in config.yaml"
        )
    if not os.access(path, os.R_OK):
        raise LoadError(f"{path} cannot be read: expected an ONNX file that this user may read")
    file = native_path(path)
    try:
        # Without enable_fallback=0 onnxruntime answers a provider's error, here and at every run, by starting over on
        # the CPU.
        return ort.InferenceSession(
            file,
            settings,
            providers=[(name, dict(of_it)) for name, of_it in providers],
            enable_fallback=0,
        )
    except Exception as error:  # onnxruntime's own exceptions share no base but this one
        raise load_error(str(path), "is not a model that onnxruntime can load", error) from error


def _spec(path: Path, what: str, tensor: Any, counts_rows: bool) -> TensorSpec:
    if not tensor.type.startswith("tensor("):
        raise LoadError(
            f"{path}: {what} {tensor.name!r} is a {tensor.type}, which cannot be served; expected tensors: export the "
            "model without maps, sequences and optional values (of scikit-learn: options={'zipmap': False})"
        )
    # onnxruntime gives a number for a fixed dim, a name or None for a dynamic one.
    shape = tuple(dim if isinstance(dim, int) and dim >= 0 else ANY for dim in tensor.shape)
    if counts_rows and (not shape or shape[0] != ANY):
        raise LoadError(
            f"{path}: {what} {tensor.name!r} has shape {tensor.shape}; expected a dynamic dim 0, which is "
            f"the rows: export the model again with a dynamic first dim, or {ONE_BY_ONE}"
        )
    names = tuple(dim if isinstance(dim, str) and dim not in _NO_NAMES else "" for dim in tensor.shape)
    return TensorSpec(tensor.name, word_for_onnx(tensor.type), shape, names, counts_rows=counts_rows)
