"""One version of a model on disk: what export wrote, or an ONNX or TorchScript file from elsewhere.

Reads and checks files only; loads no model (but asks onnxruntime for a bare ONNX file's signature), writes
nothing. What a manifest may hold: artifact/manifest.py.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from foldserve.service.artifact.file_sums import EXPORT, START, Sums, check_files, check_model, sums_now
from foldserve.service.artifact.manifest import MANIFEST, TOGETHER, Manifest, read_manifest
from foldserve.service.artifact.pictures import PictureInput
from foldserve.service.artifact.signature import ONE_BY_ONE, Signature
from foldserve.service.backends import BACKENDS, LoadError
from foldserve.service.documents import shown
from foldserve.service.errors import ConfigError
from foldserve.service.repository.model_config import DEFAULT_MAX_BATCH_SIZE, ModelConfig

REFERENCE: Final = "reference.npz"
log = logging.getLogger("foldserve.repository")

_SHOWN: Final = (
    "created", "source", "dims", "narrowed", "opset", "not_written", "precision", "kept_fp32", "converted_weights",
    "fixed_inputs", "left_out", "rows", "parameter_count", "memory", "fold", "parity", "tool_versions", "image",
    "labels",
)  # fmt: skip
"""What of the manifest GET /info shows."""


@dataclass(frozen=True)
class Parity:
    """How an output of the file agreed with the eager network at the export, on its CPU.

    max_rel: how far it was off, in the measure of artifact/difference.py. tolerance: how far it may be.
    by_column: whether the columns were looked at one by one; not in a manifest that has no figures for each output.
    """

    max_rel: float
    tolerance: float
    by_column: bool


@dataclass(frozen=True)
class Artifact:
    """A version that can be served.

    file: what the backend loads. manifest: None for files that foldserve did not export.
    max_batch_size: the largest batch, from config.yaml, else the manifest; 1 where the model counts no rows, and a
        request is one.
    found: without a manifest, what the file, and those that it takes weights from, were when it was read.
    """

    model: str
    version: str
    folder: Path
    backend: str
    file: Path
    signature: Signature
    max_batch_size: int
    manifest: Manifest | None
    found: Sums

    @property
    def reference(self) -> Path | None:
        """The file with inputs and the eager network's outputs, where there is one."""
        path = self.folder / REFERENCE
        return path if path.is_file() else None

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of an output's columns; none where the manifest has none."""
        return self.manifest.labels if self.manifest else ()

    @property
    def image(self) -> PictureInput | None:
        """How a picture becomes an input; None where the manifest does not say."""
        image = self.manifest.image if self.manifest else None
        return None if image is None else PictureInput.from_manifest(image)

    def parity(self, output: str) -> Parity | None:
        """What the export measured of an output; None without a manifest."""
        if not self.manifest:
            return None
        whole = self.manifest.parity[BACKENDS[self.backend].parity]
        figures = (whole.outputs or {}).get(output)
        if figures is None:
            return Parity(float(whole.max_rel), float(whole.tolerance), by_column=False)
        return Parity(float(figures.max_rel), float(figures.tolerance), by_column=True)

    def changed(self) -> str:
        """What is not as it was exported, or found by the server, of what is about to be loaded, and the mend; "" when
        nothing is."""
        if self.manifest:
            checks = check_model(self.folder, self.file, self.manifest.files, EXPORT)
            fix = "export the model again, or restore the file"
        else:
            checks = check_files(self.folder, self.found, START)
            fix = "restart the server to serve what is there now, or restore the file"
        return next((f"{check.problem}; {fix}" for check in checks if check.problem), "")

    def summary(self) -> dict[str, Any]:
        """The part of the manifest that GET /info shows."""
        content = self.manifest.to_json() if self.manifest else {}
        return {key: content[key] for key in _SHOWN if key in content}


def read_artifact(folder: Path, model: str, version: str, config: ModelConfig) -> Artifact:
    """Read one version folder. Raises: ConfigError when it cannot be served as config says."""
    where = f"{model}/{version}"
    # Whatever is there under that name, a broken link too, is meant to be a manifest.
    manifest = read_manifest(folder, where) if os.path.lexists(folder / MANIFEST) else None
    if manifest and (manifest.name, manifest.version) != (model, version):
        raise ConfigError(
            f"{MANIFEST} of {where} is of {shown(manifest.name)}, version {shown(manifest.version)}; "
            "expected the folder's names: move the folder, or export again with --name and --version"
        )
    file = _model_file(folder, where, config.backend, manifest)
    backend = config.backend or next(
        name for name, row in BACKENDS.items() if Path(row.file).suffix == file.suffix
    )
    if manifest:
        _check_covers(manifest, file, backend, where)
    found = {} if manifest else _found(folder, file, where)  # before anything else is read of them
    largest = config.batch_buckets[-1] if config.batch_buckets else config.max_batch_size
    if manifest and manifest.runs_alone:
        _check_no_batches(largest, where)
        largest = 0
    if largest == 0:
        largest = 1
    return Artifact(
        model=model,
        version=version,
        folder=folder,
        backend=backend,
        file=file,
        signature=_signature(manifest, file, backend, where, config),
        max_batch_size=largest or (manifest and manifest.max_batch_size) or DEFAULT_MAX_BATCH_SIZE,
        manifest=manifest,
        found=found,
    )


def _check_no_batches(largest: int | None, where: str) -> None:
    """Raise ConfigError where config.yaml wants batches of a model whose rows belong together."""
    if largest:
        raise ConfigError(
            f"config.yaml sets batches of {largest} rows, and {MANIFEST} of {where} says that the answer to a row "
            f"depends on all rows of its request (rows: {TOGETHER}); expected `max_batch_size: 0`, one request at a "
            "time: remove max_batch_size and batch_buckets, or export the network with --rows independent"
        )


def _found(folder: Path, file: Path, where: str) -> Sums:
    try:
        return sums_now(folder, file)
    except OSError as error:
        raise ConfigError(
            f"{file.name} of {where} cannot be read: {error.strerror}; expected a file that this user may read"
        ) from error


def _check_covers(manifest: Manifest, file: Path, backend: str, where: str) -> None:
    """Raise ConfigError unless the manifest has the hash of the file that is served, and what was measured of it."""
    missing = []
    if file.name not in manifest.files:
        missing.append(f"files.{file.name}")
    if BACKENDS[backend].parity not in manifest.parity:
        missing.append(f"parity.{BACKENDS[backend].parity}")
    if missing:
        raise ConfigError(
            f"{MANIFEST} of {where} lacks {', '.join(missing)}, of the file that is served: export the model again, or "
            f"remove {MANIFEST} to serve the file as one that foldserve did not export"
        )


def _model_file(folder: Path, where: str, backend: str | None, manifest: Manifest | None) -> Path:
    """The file to serve: the backend's own name, or the only file with its ending."""
    rows = [BACKENDS[backend]] if backend else list(BACKENDS.values())
    for row in rows:
        named = folder / row.file
        if named.is_file():
            return named
        # Ordinary files: a runtime would wait for a pipe, and read a device for ever.
        others = sorted(path for path in folder.glob(f"*{named.suffix}") if path.is_file())
        if len(others) == 1:
            return others[0]
    for missing in manifest.not_written if manifest else ():
        if backend and missing.file == rows[0].file:
            raise ConfigError(
                f"{where} holds no {missing.file}, which the export did not write: {missing.reason}; "
                f"expected the file that `backend: {backend}` runs: leave `backend` out of config.yaml"
            )
    names = " or ".join(row.file for row in rows)
    raise ConfigError(
        f"{where} holds no {names}; expected one: export the model into the repository, or change `backend` in "
        "config.yaml"
    )


def _signature(
    manifest: Manifest | None, file: Path, backend: str, where: str, config: ModelConfig
) -> Signature:
    """What the version takes and gives. Raises: ConfigError, also when its rows cannot be counted."""
    signature = _stated(manifest, file, backend, where, config)
    against = signature.rows_elsewhere()
    if against:
        raise ConfigError(
            f"{where} cannot be served in batches: {against}; give dims that need not be equal names of their own, and "
            f"export the model with rows that do not depend on each other, or {ONE_BY_ONE}"
        )
    return signature


def _stated(
    manifest: Manifest | None, file: Path, backend: str, where: str, config: ModelConfig
) -> Signature:
    if manifest:
        signature = manifest.signature()
        return signature if manifest.runs_alone else signature.counting_rows(config.max_batch_size != 0)
    if config.signature:
        return config.signature
    if backend != "onnxruntime":
        raise ConfigError(
            f"{where} has no {MANIFEST}, and {file.name} does not say what it takes; expected `signature` "
            "with inputs and outputs in config.yaml (docs/operations.md shows one)"
        )
    # Imported here: reading a repository of exported artifacts needs no onnxruntime.
    from foldserve.service.backends.onnxruntime.cpu_session import read_signature

    try:
        return read_signature(file, counts_rows=config.max_batch_size != 0)
    except LoadError as error:
        if error.cause:
            log.error("%s", error)
        raise ConfigError(error.shown_in(file.parents[2])) from error
