"""The runtimes that foldserve can run a model with. A new one: a file here, and a row in BACKENDS.

Backends are imported when first used: a server of ONNX files never loads torch.
"""

import importlib
from dataclasses import dataclass, replace
from pathlib import Path

from foldserve.service.artifact.signature import Signature
from foldserve.service.backends.base import LoadError, LoadSession, Session, SessionOptions, Workload
from foldserve.service.backends.one_row import OneRowSession


@dataclass(frozen=True)
class Backend:
    """One runtime.

    file: the artifact's file that it runs.
    parity: the key of its entry in the manifest's "parity".
    module: has load_session (base.LoadSession).
    needs: the package whose absence makes the backend unavailable, and how to get it.
    """

    file: str
    parity: str
    module: str
    needs: tuple[str, str]


BACKENDS: dict[str, Backend] = {
    "onnxruntime": Backend(
        "model.onnx",
        "onnx",
        "foldserve.service.backends.onnxruntime.cpu_session",
        ("onnxruntime", "pip install onnxruntime-gpu"),
    ),
    "torchscript": Backend(
        "model.pt",
        "torchscript",
        "foldserve.service.backends.torchscript.cpu_session",
        ("torch", "pip install torch, or serve the ONNX file with `backend: onnxruntime`"),
    ),
}


def load_session(
    backend: str,
    path: Path,
    signature: Signature,
    device: str,
    options: SessionOptions,
    workload: Workload = Workload(),  # noqa: B008 - frozen
) -> Session:
    """Load a model's file.

    The session of a model that counts no rows takes and gives batches of one row, as those of others do.
    Raises: DeviceLost; LoadError, also when the backend's package is not installed.
    """
    row = BACKENDS[backend]
    try:
        load: LoadSession = importlib.import_module(row.module).load_session
    except ModuleNotFoundError as error:
        package, fix = row.needs
        if error.name != package:
            raise
        raise LoadError(
            f"backend {backend} needs the package {package}, which is not installed: {fix}"
        ) from error
    if signature.counts_rows:
        return load(path, signature, device, options, workload)
    # What it is given may have any dims: no memory and no graphs for so many rows.
    workload = replace(workload, buckets=(), shared=False)
    return OneRowSession(load(path, signature, device, options, workload))


__all__ = ["BACKENDS", "Backend", "LoadError", "Session", "SessionOptions", "Workload", "load_session"]
