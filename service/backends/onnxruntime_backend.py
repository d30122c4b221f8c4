"""Runs ONNX files with ONNX Runtime, on the CPU or through its CUDA provider.

On "cuda:N" the session must really run on CUDA: onnxruntime falls back to the CPU with no more than a log
line when the provider's libraries do not load, so the providers it ended up with are compared with those
asked for.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from service.backends.base import LoadError, SessionOptions, usable_cores
from service.datatypes import word_for_onnx
from service.errors import ConfigError
from service.signature import ANY, Signature, TensorSpec

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"

_ERRORS_ONLY = 3  # onnxruntime's log severity: its warnings at load are about its own optimisations

# EXHAUSTIVE (onnxruntime's default) tunes again at every new shape, and dynamic batching makes many shapes;
# kSameAsRequested keeps the arena from doubling past what the largest bucket needs.
_CUDA_OPTIONS: Mapping[str, Any] = {
    "cudnn_conv_algo_search": "HEURISTIC",
    "arena_extend_strategy": "kSameAsRequested",
}


class OnnxSession:
    """A model in ONNX Runtime. run() may be called from several threads (onnxruntime allows it)."""

    notes: Sequence[str] = ()

    def __init__(self, session: ort.InferenceSession, outputs: tuple[str, ...]) -> None:
        self._session = session
        self._outputs = list(outputs)

    def host_buffers(self, rows: int) -> None:
        """See base.Session."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See base.Session."""
        arrays = self._session.run(self._outputs, dict(inputs))
        return dict(zip(self._outputs, arrays, strict=True))


def load_session(path: Path, signature: Signature, device: str, options: SessionOptions) -> OnnxSession:
    """Load an ONNX file on a device. Raises: LoadError."""
    providers = list(options.providers) or default_providers(device)
    session = _open(path, providers, options.threads or usable_cores())
    got = session.get_providers()
    missing = [name for name, _ in providers if name not in got]
    if missing:
        raise LoadError(
            f"{path}: onnxruntime could not use {', '.join(missing)} and fell back to {', '.join(got)}; "
            "install the provider's libraries (foldserve[cuda] for CUDA), or serve with --device cpu"
        )
    _check_names(path, "input", signature.inputs_by_name, [tensor.name for tensor in session.get_inputs()])
    _check_names(path, "output", signature.outputs_by_name, [tensor.name for tensor in session.get_outputs()])
    return OnnxSession(session, tuple(signature.outputs_by_name))


def read_signature(path: Path) -> Signature:
    """The signature of an ONNX file that has no manifest.

    Raises: LoadError when the file cannot be read, or its dim 0 does not count rows.
    """
    session = _open(path, [(CPU, {})], threads=1)  # one thread: no pool is started in the asking process
    try:
        return Signature(
            tuple(_spec(path, "input", tensor) for tensor in session.get_inputs()),
            tuple(_spec(path, "output", tensor) for tensor in session.get_outputs()),
        )
    except (ConfigError, ValueError) as error:
        raise LoadError(f"{path}: {error}") from error


def default_providers(device: str) -> list[tuple[str, Mapping[str, Any]]]:
    """The providers of a device, most wanted first, with their options."""
    if device == "cpu":
        return [(CPU, {})]
    return [(CUDA, {**_CUDA_OPTIONS, "device_id": device.partition(":")[2] or "0"}), (CPU, {})]


def _open(path: Path, providers: list[tuple[str, Mapping[str, Any]]], threads: int) -> ort.InferenceSession:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = _ERRORS_ONLY
    # A pool that spins between runs burns the cores it was given while the server is idle.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    unknown = [name for name, _ in providers if name not in ort.get_available_providers()]
    if unknown:
        raise LoadError(
            f"this onnxruntime has no {', '.join(unknown)}, only {', '.join(ort.get_available_providers())}; "
            "install onnxruntime-gpu, or change `session: providers` in config.yaml"
        )
    if not os.access(path, os.R_OK):
        raise LoadError(f"{path} cannot be read: expected an ONNX file that this user may read")
    try:
        return ort.InferenceSession(
            str(path), settings, providers=[(name, dict(of_it)) for name, of_it in providers]
        )
    except Exception as error:  # onnxruntime's own exceptions share no base but this one
        raise LoadError(f"{path} is not a model that onnxruntime can load: {error}") from error


def _check_names(path: Path, what: str, expected: Mapping[str, TensorSpec], got: list[str]) -> None:
    if set(expected) != set(got):
        raise LoadError(
            f"{path} has the {what}s {', '.join(got)}; expected {', '.join(expected)}, as the manifest says: "
            "export it again"
        )


def _spec(path: Path, what: str, tensor: Any) -> TensorSpec:
    # onnxruntime gives a number for a fixed dim, a name or None for a dynamic one.
    shape = tuple(dim if isinstance(dim, int) and dim >= 0 else ANY for dim in tensor.shape)
    if not shape or shape[0] != ANY:
        raise LoadError(
            f"{path}: {what} {tensor.name!r} has shape {tensor.shape}; expected a dynamic dim 0, which is "
            "the rows: export the model again with a dynamic first dim"
        )
    return TensorSpec(tensor.name, word_for_onnx(tensor.type), shape)
