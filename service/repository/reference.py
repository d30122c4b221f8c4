"""What a model's answers are held against: the export's reference.npz, and how far an answer may be off."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foldserve.service.artifact.signature import ANY
from foldserve.service.artifact.tolerance import TF32_ROUNDOFF, lower_tolerance
from foldserve.service.backends import LoadError, SessionOptions
from foldserve.service.repository.artifact import Artifact, Parity

# Far above what the export writes (some rows); a small file can hold any number of zeros.
_MOST_REFERENCE_BYTES = 2**30
_MOST_REFERENCE_ROWS = 1024


@dataclass(frozen=True)
class Allowance:
    """How far an output may be from the reference. axes: whose columns are looked at one by one."""

    tolerance: float
    axes: tuple[int, ...]


def allowances(artifact: Artifact, device: str, options: SessionOptions) -> dict[str, Allowance]:
    """Of every output; none when the artifact does not tell."""
    found = {}
    for spec in artifact.signature.outputs:
        parity = artifact.parity(spec.name)
        if parity is None:
            return {}
        axes = (axis for axis, size in enumerate(spec.batch_shape) if axis > 0 and size != ANY)
        found[spec.name] = Allowance(
            tolerance(parity, device, options), tuple(axes) if parity.by_column else ()
        )
    return found


def tolerance(parity: Parity, device: str, options: SessionOptions) -> float:
    """How far an output may be from the reference, in the measure of artifact/difference.py.

    What the manifest states. Where a GPU may use TF32, at least what rounding to its 11 significant bits should cost
    this network, by what the export measured in float32.
    """
    if device == "cpu" or not options.tf32:
        return parity.tolerance
    return max(parity.tolerance, lower_tolerance(parity.max_rel, TF32_ROUNDOFF))


def read_reference(artifact: Artifact) -> dict[str, np.ndarray]:
    """The arrays of reference.npz, "input.<name>" and "output.<name>", as a batch; none when there is no such file.

    Raises: LoadError when the file is broken or lacks one of them.
    """
    path = artifact.reference
    if path is None:
        return {}
    names = [
        *(f"input.{spec.name}" for spec in artifact.signature.inputs),
        *(f"output.{spec.name}" for spec in artifact.signature.outputs),
    ]
    try:
        with zipfile.ZipFile(path) as archive:
            nbytes = sum(entry.file_size for entry in archive.infolist())
        if nbytes > _MOST_REFERENCE_BYTES:
            raise LoadError(
                f"{path} cannot be used: it holds {nbytes} bytes, at most {_MOST_REFERENCE_BYTES} are read; export the "
                "model again"
            )
        with np.load(path, allow_pickle=False) as arrays:
            reference: dict[str, np.ndarray] = {name: arrays[name] for name in names}
    except LoadError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise whatever a damaged file leads them to
        raise LoadError(f"{path} cannot be used; export the model again", error) from error
    _check_reference_fits(artifact, path, reference)
    if artifact.signature.counts_rows:
        return reference
    return {name: array[np.newaxis] for name, array in reference.items()}


def _check_reference_fits(artifact: Artifact, path: Path, reference: dict[str, np.ndarray]) -> None:
    """Raise LoadError unless the arrays are what the signature says, and have the same number of rows, where it counts
    any, at least one."""
    signature = artifact.signature
    named = [
        *((f"input.{spec.name}", spec) for spec in signature.inputs),
        *((f"output.{spec.name}", spec) for spec in signature.outputs),
    ]
    rows = len(reference[named[0][0]]) if reference[named[0][0]].ndim else 0
    for name, spec in named:
        array = reference[name]
        fits = array.ndim == len(spec.shape) and all(
            want in (ANY, got) for got, want in zip(array.shape, spec.shape, strict=True)
        )
        if array.dtype != spec.dtype or not fits:
            raise LoadError(
                f"{path} cannot be used: {name} is {array.dtype} {list(array.shape)}, the signature says "
                f"{spec.datatype} {list(spec.shape)}; export the model again"
            )
        if spec.counts_rows and (len(array) != rows or not 0 < rows <= _MOST_REFERENCE_ROWS):
            raise LoadError(
                f"{path} cannot be used: {name} has {len(array)} rows; expected 1 to {_MOST_REFERENCE_ROWS}, and as "
                f"many as {named[0][0]}; export the model again"
            )
