"""From an artifact on disk to a session that may serve: the steps whose end is called "ready".

    file as it was exported? -> session on its device -> answers like the eager network's? -> so in every bucket?

Each step that fails raises LoadError: the model is then not served, its reason goes to the log and /info, and
other models are served. Knows neither queues nor processes.
"""

import logging
import zipfile
from collections.abc import Mapping

import numpy as np

from service.artifact import Artifact, check_file
from service.backends import LoadError, Session, SessionOptions, Workload, load_session
from service.backends.base import DeviceLost, NoRoom, OutOfMemory
from service.buckets import bucket_for, buckets_for, padded, sizes_to_warm
from service.model_config import ModelConfig
from service.signature import ANY, TensorSpec

Arrays = Mapping[str, np.ndarray]

log = logging.getLogger(__name__)

_TF32_ROUNDOFF = 2.0**-11
_FP32_ROUNDOFF = 2.0**-24


def load_model(artifact: Artifact, config: ModelConfig, device: str, options: SessionOptions) -> Session:
    """Load, check and warm a model on a device. Raises: LoadError, DeviceLost."""
    if artifact.file.name in artifact.manifest.get("files", {}):
        found = check_file(artifact.folder, artifact.manifest, artifact.file.name)
        if found.problem:
            raise LoadError(f"{found.problem}; export the model again, or restore the file")
    buckets = buckets_for(device, config.batch_buckets, artifact.max_batch_size)
    session = load_session(
        artifact.backend, artifact.file, artifact.signature, device, options, workload(artifact, buckets)
    )
    reference = read_reference(artifact)
    allowed = tolerance(artifact, device, options)
    if reference:
        check_reference(artifact, buckets, session, reference, allowed)
    if config.warmup:
        warm(artifact, buckets, session, reference, allowed)
    return session


def workload(artifact: Artifact, buckets: tuple[int, ...]) -> Workload:
    """What the session will be given, as far as the manifest tells. Raises: LoadError for a manifest that is broken."""
    memory = artifact.manifest.get("memory")
    if memory is None:
        return Workload(buckets)
    try:
        return Workload(buckets, int(memory["weights_bytes"]), int(memory["row_bytes"]))
    except (TypeError, KeyError, ValueError) as error:
        raise LoadError(
            f"the manifest of {artifact.model}/{artifact.version} has memory {memory!r}; expected weights_bytes and "
            "row_bytes, whole numbers: export the model again"
        ) from error


def tolerance(artifact: Artifact, device: str, options: SessionOptions) -> float | None:
    """How far answers may be from the reference, relative to its largest; None when the artifact does not tell.

    What the manifest states. Where a GPU may use TF32, at least what rounding to its 11 significant bits should cost
    this network, reckoned as the export does for fp16, which has as many: 4 times what the export measured in float32
    (24 bits), for 2**13 times the rounding; at least 8 roundings, at most a tenth. Keep in step with
    models/export/verify.py.
    """
    stated, measured = artifact.tolerance, artifact.measured_error
    if stated is None or measured is None or device == "cpu" or not options.tf32:
        return stated
    return max(stated, min(0.1, max(8 * _TF32_ROUNDOFF, 4 * measured * _TF32_ROUNDOFF / _FP32_ROUNDOFF)))


def read_reference(artifact: Artifact) -> dict[str, np.ndarray]:
    """The arrays of reference.npz, "input.<name>" and "output.<name>"; none when there is no such file.

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
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise LoadError(f"{path} cannot be used; export the model again", error) from error


def check_reference(
    artifact: Artifact,
    buckets: tuple[int, ...],
    session: Session,
    reference: dict[str, np.ndarray],
    allowed: float | None,
) -> None:
    """Compare the session's answers with the eager network's.

    Args:
        allowed: relative to the largest value, see tolerance(); None = nothing to compare with.
    Raises: DeviceLost; LoadError when they differ by more.
    """
    if allowed is None:
        return
    inputs = {spec.name: reference[f"input.{spec.name}"] for spec in artifact.signature.inputs}
    _compare(artifact, _answers(artifact, buckets, session, inputs), reference, allowed, "")


def warm(
    artifact: Artifact,
    buckets: tuple[int, ...],
    session: Session,
    reference: dict[str, np.ndarray],
    allowed: float | None,
) -> None:
    """Run every batch size that may come, so that no client waits for a first run.

    The largest first: a device's memory is then taken once, and the smaller sizes fit into it. With the reference's
    rows, whose answers are compared again: each size has a CUDA graph, and perhaps kernels, of its own. Without a
    reference with zeros, and a failure is then only logged: the size of a dynamic dim is a guess.

    Args:
        allowed: as for check_reference.
    Raises: DeviceLost; LoadError when the model fails, has no room for the smallest size, or gives outputs that do
        not fit the signature or differ by more.
    """
    sizes = sizes_to_warm(buckets, artifact.max_batch_size)
    for size in reversed(sizes):
        inputs = {
            spec.name: _rows_like(reference[f"input.{spec.name}"], size) if reference else _zeros(spec, size)
            for spec in artifact.signature.inputs
        }
        try:
            for _ in range(2):  # TorchScript's second run compiles for what the first one saw
                outputs = session.run(inputs)
        except DeviceLost:
            raise
        except Exception as error:
            if isinstance(error, OutOfMemory) and size > sizes[0]:
                log.warning(
                    "%s: the device has no room for a batch of %d rows (%s); so many are run in smaller batches",
                    *(artifact.file, size, error),
                )
                continue
            if reference or isinstance(error, OutOfMemory):
                raise _failed(f"{artifact.file} failed while warming {size} rows", error) from error
            log.warning(
                "%s could not be warmed with zeros, its first requests will be slow: %s", artifact.file, error
            )
            return
        _check_outputs(artifact, outputs)
        if reference and allowed is not None:
            _compare(
                artifact, _last_rows(outputs, reference), reference, allowed, f" in a batch of {size} rows"
            )


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """How far an answer is from the wanted one; the measure in which the manifest states its tolerance.

    Floats: the largest difference relative to the largest value wanted (to 1 where that is all zeros).
    Integers and booleans: the share of elements that differ. Infinite when shape or kind differ, or when the
    values that are not finite are not the same. Keep in step with models/export/difference.py; a test does.
    """
    if got.shape != want.shape or (got.dtype.kind == "f") != (want.dtype.kind == "f"):
        return float("inf")
    if want.size == 0:
        return 0.0
    if want.dtype.kind != "f":
        return float(np.mean(got != want))
    found, wanted = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(wanted)
    if not np.array_equal(np.isfinite(found), finite) or not np.array_equal(
        found[~finite], wanted[~finite], equal_nan=True
    ):
        return float("inf")
    largest = float(np.abs(found[finite] - wanted[finite]).max(initial=0.0))
    scale = float(np.abs(wanted[finite]).max(initial=0.0))
    return largest / scale if scale > 0 else largest


def _answers(artifact: Artifact, buckets: tuple[int, ...], session: Session, inputs: Arrays) -> Arrays:
    """The model's answers for a reference's inputs, in batches that are allowed. Raises: LoadError, DeviceLost."""
    rows = len(next(iter(inputs.values())))
    parts: dict[str, list[np.ndarray]] = {spec.name: [] for spec in artifact.signature.outputs}
    most, at = artifact.max_batch_size, 0
    while at < rows:
        count = min(most, rows - at)
        bucket = bucket_for(count, buckets)
        piece = {name: padded(array[at : at + count], bucket) for name, array in inputs.items()}
        try:
            outputs = session.run(piece)
            for name, of_pieces in parts.items():
                of_pieces.append(outputs[name][:count].copy())  # the session may use its memory again
        except DeviceLost:
            raise
        except Exception as error:
            if isinstance(error, OutOfMemory) and count > 1:
                most = count // 2
                continue
            raise _failed(f"{artifact.file} failed on its reference", error) from error
        at += count
    return {name: np.concatenate(of_pieces) for name, of_pieces in parts.items()}


def _compare(
    artifact: Artifact, answers: Arrays, reference: dict[str, np.ndarray], allowed: float, where: str
) -> None:
    """Raise LoadError unless the answers are the reference's."""
    for name, got in answers.items():
        found = relative_error(got, reference[f"output.{name}"])
        if not found <= allowed:
            raise LoadError(
                f"{artifact.file} does not agree with its reference{where}: output {name!r} is off by {found:.3g} "
                f"of the largest value, {allowed:.3g} is allowed by the manifest; it is not served: export it "
                "again, or look for a change of device or runtime"
            )


def _last_rows(outputs: Arrays, reference: dict[str, np.ndarray]) -> Arrays:
    """The last outputs of a batch of _rows_like(), in the places of a reference's, whose others they leave.

    The last, for a batch that is not wholly run has its first rows. With the others, for differences are relative to
    the largest value of all.
    """
    found: dict[str, np.ndarray] = {}
    for name, output in outputs.items():
        whole = found[name] = reference[f"output.{name}"].copy()
        if output.shape[1:] != whole.shape[1:]:
            found[name] = output  # never like it
            continue
        rows, most = len(output), min(len(output), len(whole))
        whole[np.arange(rows - most, rows) % len(whole)] = output[rows - most :]
    return found


def _failed(what: str, error: Exception) -> LoadError:
    return (NoRoom if isinstance(error, OutOfMemory) else LoadError)(what, error)


def _check_outputs(artifact: Artifact, outputs: Arrays) -> None:
    """Raise LoadError unless the outputs have the signature's datatypes and dims."""
    for spec in artifact.signature.outputs:
        array = outputs[spec.name]
        fits = array.ndim == len(spec.shape) and all(
            want in (ANY, got) for got, want in zip(array.shape, spec.shape, strict=True)
        )
        if not fits or array.dtype != spec.dtype:
            raise LoadError(
                f"{artifact.file} gives output {spec.name!r} as {array.dtype} {list(array.shape)}; expected "
                f"{spec.datatype} {list(spec.shape)}, as the signature says: mend it in config.yaml, or "
                "export the model again"
            )


# For dynamic dims of models without a reference: small, but enough for the usual kernels and poolings.
_GUESSED_DIM = 32


def _zeros(spec: TensorSpec, rows: int) -> np.ndarray:
    return np.zeros((rows, *(_GUESSED_DIM if dim == ANY else dim for dim in spec.row_shape)), spec.dtype)


def _rows_like(array: np.ndarray, rows: int) -> np.ndarray:
    """`rows` rows, repeating those of the array."""
    return np.ascontiguousarray(array[np.arange(rows) % len(array)])
