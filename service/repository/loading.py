"""From an artifact on disk to a session that may serve: the steps whose end is called "ready".

    file as it was exported? -> session on its device -> answers like the eager network's? -> so in every bucket?
    -> outputs that count rows, and rows that are not mixed?

Each step that fails raises LoadError: the model is then not served, its reason goes to the log and /info, and
other models are served. Knows neither queues nor processes.
"""

import logging
from collections.abc import Mapping

import numpy as np

from foldserve.service.artifact.difference import relative_error
from foldserve.service.artifact.signature import ANY
from foldserve.service.backends import LoadError, Session, SessionOptions, Workload, load_session
from foldserve.service.backends.base import DeviceLost, InsufficientMemory, OutOfMemory
from foldserve.service.repository.artifact import Artifact
from foldserve.service.repository.buckets import bucket_for, buckets_for, padded, sizes_to_warm
from foldserve.service.repository.model_config import ModelConfig
from foldserve.service.repository.reference import Allowance, allowances, read_reference
from foldserve.service.repository.row_check import RowCheck, check_outputs
from foldserve.service.repository.trial_rows import (
    GUESSED_DIMS,
    TRIED,
    Rows,
    kinds,
    repeated,
    shapes_with,
    zeros,
)

Arrays = Mapping[str, np.ndarray]

log = logging.getLogger("foldserve.loading")


def load_model(artifact: Artifact, config: ModelConfig, device: str, options: SessionOptions) -> Session:
    """Load, check and warm a model on a device. Raises: LoadError, DeviceLost."""
    changed = artifact.changed()
    if changed:
        raise LoadError(changed)
    buckets = buckets_for(device, config.batch_buckets, artifact.max_batch_size)
    session = load_session(
        artifact.backend, artifact.file, artifact.signature, device, options, workload(artifact, buckets)
    )
    reference = read_reference(artifact)
    allowed = allowances(artifact, device, options)
    on_gpu = device != "cpu"
    rows: Rows | None = _inputs_of(reference, artifact)
    if rows:
        check_reference(artifact, buckets, session, reference, allowed)
    else:
        rows = find_rows(artifact, buckets, session, known_values=on_gpu)
    counts_rows = artifact.signature.counts_rows
    # Where no rows are counted there is one size, and no other trial of whether the outputs are the signature's.
    if rows and (config.warmup or not counts_rows):
        warm(artifact, buckets, session, rows, reference, allowed)
    if rows and counts_rows:
        check_rows(artifact, buckets, session, rows, bool(reference), known_values=on_gpu)
    return session


def workload(artifact: Artifact, buckets: tuple[int, ...]) -> Workload:
    """What the session will be given, as far as the manifest says."""
    memory = artifact.manifest.memory if artifact.manifest else None
    if memory is None:
        return Workload(buckets)
    return Workload(buckets, memory.weights_bytes, memory.row_bytes)


def _inputs_of(reference: Mapping[str, np.ndarray], artifact: Artifact) -> Rows:
    """The reference's rows; empty when there is none."""
    return (
        {spec.name: reference[f"input.{spec.name}"] for spec in artifact.signature.inputs}
        if reference
        else {}
    )


def check_reference(
    artifact: Artifact,
    buckets: tuple[int, ...],
    session: Session,
    reference: dict[str, np.ndarray],
    allowed: Mapping[str, Allowance],
) -> None:
    """Compare the session's answers with the eager network's.

    Args:
        allowed: per output; empty = nothing to compare with.
    Raises: DeviceLost; LoadError when they differ by more.
    """
    if not allowed:
        return
    inputs = _inputs_of(reference, artifact)
    _compare(artifact, _answers(artifact, buckets, session, inputs), reference, allowed, "")


def check_rows(
    artifact: Artifact,
    buckets: tuple[int, ...],
    session: Session,
    rows: Rows,
    usual: bool,
    known_values: bool,
) -> None:
    """Check that the model's outputs count rows, and that it does not mix them.

    Args:
        rows: such as the model takes.
        usual: whether those are real ones, of which answers can be compared; zeros tell little.
    Raises: LoadError, DeviceLost.
    """
    shapes = {name: array.shape[1:] for name, array in rows.items()}
    of_all_kinds = kinds(artifact.signature, shapes, out_of_range=not known_values)
    real = [{name: array[:TRIED] for name, array in rows.items()}] if usual else []
    check = RowCheck(str(artifact.file), artifact.signature, session, buckets, artifact.max_batch_size)
    check.check([*real, *of_all_kinds])


def find_rows(
    artifact: Artifact, buckets: tuple[int, ...], session: Session, known_values: bool
) -> Rows | None:
    """Rows that the model takes, for one that has no reference: zeros if it does; None when nothing that was tried did.

    Args:
        known_values: whether only such whole numbers are tried as are never out of range; see trial_rows.kinds().
    Raises: DeviceLost; LoadError when it takes nothing though all its dims are known, or when there is no memory for
        one row.
    """
    signature, size = artifact.signature, bucket_for(1, buckets)
    fixed = not any(ANY in spec.row_shape for spec in signature.inputs)
    first: Exception | None = None
    for dim in (1,) if fixed else GUESSED_DIMS:
        shapes = shapes_with(signature, dim)
        for rows in (zeros(signature, 1, shapes), *kinds(signature, shapes, not known_values)):
            try:
                session.run(repeated(rows, size))
            except DeviceLost:
                raise
            except OutOfMemory as error:
                raise _failed(f"{artifact.file} failed while warming {size} rows", error) from error
            except Exception as error:
                first = first or error
                continue
            return rows
    if fixed:
        raise LoadError(
            f"{artifact.file} takes no rows of its signature ({', '.join(map(str, signature.inputs))}); expected that "
            "it runs with zeros, ones or random numbers: fix the signature in config.yaml, or export the model again",
            first or "",
        ) from first
    log.warning(
        "%s could not be warmed with zeros, ones or random numbers, dims of any size being 1 to %d: %s; its first "
        "requests will be slow, and whether its outputs %s is not known",
        *(artifact.file, max(GUESSED_DIMS), first),
        "count rows" if signature.counts_rows else "are what its signature says",
    )
    return None


def warm(
    artifact: Artifact,
    buckets: tuple[int, ...],
    session: Session,
    rows: Rows,
    reference: dict[str, np.ndarray],
    allowed: Mapping[str, Allowance],
) -> None:
    """Run every batch size that may come, so that no client waits for a first run.

    The largest first: a device's memory is then taken once, and the smaller sizes fit into it. With the reference's
    rows, whose answers are compared again: each size has a CUDA graph, and perhaps kernels, of its own.

    Args:
        rows: the reference's, or such as the model takes.
        allowed: as for check_reference.
    Raises: DeviceLost; LoadError when the model fails, has no memory for the smallest size, or gives outputs that do
        not fit the signature, do not count the rows, or differ by more.
    """
    sizes = sizes_to_warm(buckets, artifact.max_batch_size)
    for size in reversed(sizes):
        inputs = repeated(rows, size)
        try:
            for _ in range(2):  # TorchScript's second run compiles for what the first one saw
                outputs = session.run(inputs)
        except DeviceLost:
            raise
        except Exception as error:
            if isinstance(error, OutOfMemory) and size > sizes[0]:
                log.warning(
                    "%s: the device does not have enough memory for a batch of %d rows (%s); so many are run in "
                    "smaller batches",
                    *(artifact.file, size, error),
                )
                continue
            raise _failed(f"{artifact.file} failed while warming {size} rows", error) from error
        check_outputs(str(artifact.file), artifact.signature, outputs, size)
        if reference and allowed:
            _compare(
                artifact, _last_rows(outputs, reference), reference, allowed, f" in a batch of {size} rows"
            )


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
    artifact: Artifact,
    answers: Arrays,
    reference: dict[str, np.ndarray],
    allowed: Mapping[str, Allowance],
    where: str,
) -> None:
    """Raise LoadError unless the answers are the reference's."""
    for name, got in answers.items():
        most = allowed[name]
        found = relative_error(got, reference[f"output.{name}"], most.axes)
        if not found <= most.tolerance:
            raise LoadError(
                f"{artifact.file} does not agree with its reference{where}: output {name!r} is off by {found:.3g} of "
                f"the largest value{' of a column' if most.axes else ''}, {most.tolerance:.3g} is allowed by the "
                "manifest; it is not served: export it again, or look for a change of device or runtime"
            )


def _last_rows(outputs: Arrays, reference: dict[str, np.ndarray]) -> Arrays:
    """The last outputs of a batch of repeated() rows, in the places of a reference's, whose others they leave.

    The last, for a batch that is not wholly run has its first rows. With the others, for differences are relative to
    the values of all.
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
    return (InsufficientMemory if isinstance(error, OutOfMemory) else LoadError)(what, error)
