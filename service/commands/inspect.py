"""`foldserve inspect`: what the artifacts in a folder are, and whether their files are what was exported.

Reads files only; loads no model. What is in a manifest: artifact/manifest.py.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, TextIO

from foldserve.service.artifact.file_sums import EXPORT, FileCheck, check_files, check_model, size_text
from foldserve.service.artifact.manifest import Fold, FormParity, Manifest
from foldserve.service.artifact.names import VERSION_NAME
from foldserve.service.artifact.pictures import PictureInput
from foldserve.service.did_you_mean import similar_folder
from foldserve.service.documents import printable
from foldserve.service.errors import ConfigError
from foldserve.service.repository.artifact import Artifact, read_artifact
from foldserve.service.repository.index import CONFIG, has_model_file
from foldserve.service.repository.model_config import read_model_config

_DIGEST_CHARS: Final = 16


def inspect(target: Path, out: TextIO) -> int:
    """Describe every version under target; return 0, or 1 when one is damaged or cannot be served.

    Args:
        target: a repository, a model's folder in one, or a version's folder in that.
    Raises: ConfigError when there is nothing to inspect.
    """
    folders = list(version_folders(target.absolute()))
    if not folders:
        near = "" if target.is_dir() else similar_folder(target)
        raise ConfigError(
            f"{target} {'holds no exported model' if target.is_dir() else 'is not a folder'}; expected a repository "
            f"(<model>/<version>/), a model in it, or a version of that{near or ': `foldserve export` writes one'}"
        )
    damaged = 0
    for folder in folders:
        model, version = folder.parent.name, folder.name
        try:
            config = read_model_config(folder.parent / CONFIG, model)
            artifact = read_artifact(folder, model, version, config)
        except ConfigError as error:
            damaged += 1
            print(f"{model}/{version}  cannot be served", file=out)
            for problem in error.problems:
                print(f"  {problem}", file=out)
            continue
        checks = _checks(artifact)
        for line in describe(artifact, checks):
            print(printable(line), file=out)
        damaged += any(check.problem for check in checks)
    if damaged:
        print(f"{damaged} of {len(folders)} versions have problems", file=out)
    return 1 if damaged else 0


def _checks(artifact: Artifact) -> list[FileCheck]:
    """Of every file that the manifest names, and of those that it should name."""
    files = artifact.manifest.files if artifact.manifest else {}
    if not files:
        return []
    checks = list(check_model(artifact.folder, artifact.file, files, EXPORT))
    others = {name: files[name] for name in files if name not in {check.name for check in checks}}
    return [*checks, *check_files(artifact.folder, others, EXPORT)]


def version_folders(target: Path) -> Iterator[Path]:
    """The version folders at or under target, sorted by model and number."""
    if _is_version(target):
        yield target
        return
    for depth in ("*", "*/*"):
        found = [folder for folder in target.glob(depth) if _is_version(folder)]
        yield from sorted(found, key=lambda folder: (folder.parent.name, int(folder.name)))


def _is_version(folder: Path) -> bool:
    if not VERSION_NAME.fullmatch(folder.name) or folder.parent.name.startswith("."):
        return False
    try:
        return folder.is_dir() and has_model_file(folder)
    except OSError:
        return False  # not even a look at it is allowed


def describe(artifact: Artifact, checks: list[FileCheck]) -> Iterator[str]:
    """The lines that describe one version."""
    manifest = artifact.manifest
    batches = f"batches of up to {artifact.max_batch_size} rows"
    if not artifact.signature.counts_rows:
        batches = "one request at a time"
        if manifest and manifest.runs_alone:
            batches += ", whose rows belong together"
    served = f"served by {artifact.backend}, {batches}"
    yield f"{artifact.model}/{artifact.version}  {served}"
    if manifest:
        yield (
            f"  from     {manifest.source or '?'}, exported {manifest.created or '?'}, "
            f"{_opset(manifest)}, {_parameters(manifest.parameter_count)}"
        )
        yield from _precision_lines(manifest)
    else:
        yield f"  from     {artifact.file.name}, not exported by foldserve: no fold, parity or hashes to show"
    for spec in artifact.signature.inputs:
        yield f"  input    {spec}"
    for fixed in manifest.fixed_inputs if manifest else ():
        yield f"           fixed {fixed.name} = {fixed.value!r}"
    for spec in artifact.signature.outputs:
        yield f"  output   {spec}"
    for left in manifest.left_out if manifest else ():
        value = "" if left.value is None else f" = {left.value!r}"
        yield f"           left out {left.name}{value}: {left.reason}"
    yield from _picture_lines(manifest) if manifest else ()
    yield from _dim_lines(artifact)
    if manifest:
        yield from _fold_lines(manifest.fold)
        yield from _parity_lines(manifest.parity)
        for missing in manifest.not_written:
            yield f"  no file  {missing.file}: {missing.reason}"
        yield from _file_lines(manifest, checks)


def _file_lines(manifest: Manifest, checks: list[FileCheck]) -> Iterator[str]:
    for check in checks:
        stated = manifest.files.get(check.name)
        digest = stated.sha256[:_DIGEST_CHARS] if stated else "?"
        state = f"DAMAGED: {check.problem}" if check.problem else "ok"
        yield f"  file     {check.name}  {size_text(check.size_bytes)}  sha256 {digest}...  {state}"
    if manifest.tool_versions:
        yield "  tools    " + ", ".join(
            f"{name} {version}" for name, version in manifest.tool_versions.items()
        )


def _dim_lines(artifact: Artifact) -> Iterator[str]:
    links = {link.name: f", and {link}" for link in artifact.signature.links}
    shown = set()
    for spec in artifact.signature.inputs:
        for name, allowed in zip(spec.dims, spec.ranges, strict=False):
            if allowed is not None and name not in shown:
                shown.add(name)
                yield f"  dim      {name}: {allowed}{links.get(name, '')}"
    for one in artifact.manifest.narrowed if artifact.manifest else ():
        yield f"           narrowed {one.dim}: {one.reason}"


def _opset(manifest: Manifest) -> str:
    return "no ONNX file" if manifest.opset is None else f"opset {manifest.opset}"


def _precision_lines(manifest: Manifest) -> Iterator[str]:
    if manifest.precision is None:
        return
    memory = manifest.memory
    needs = (
        f", weights {size_text(memory.weights_bytes)}, at most {size_text(memory.row_bytes)} for each row"
        if memory
        else ""
    )
    yield f"  computes {manifest.precision}{needs}"
    for word in manifest.converted_weights:
        yield f"           weights in {word} were converted to float32"
    for kept in manifest.kept_fp32:
        yield f"           in fp32 {kept.where}: {kept.reason}"


def _picture_lines(manifest: Manifest) -> Iterator[str]:
    if manifest.image is not None:
        image = PictureInput.from_manifest(manifest.image)
        size = "of any size" if image.size is None else f"{image.resize} to {image.size[0]} x {image.size[1]}"
        yield f"  pictures JPEG or PNG, {size}, {image.colour}, {image.layout}"
    labels = manifest.labels
    if labels:
        yield f"  labels   {len(labels)}: {labels[0]} ... {labels[-1]}"


def _fold_lines(fold: Fold | None) -> Iterator[str]:
    if not fold:
        return
    yield f"  fold     {fold.found} batch norms found, {fold.folded} folded, {len(fold.left)} left"
    for left in fold.left:
        yield f"           left {left.where}: {left.reason}"


def _parity_lines(parity: Mapping[str, FormParity]) -> Iterator[str]:
    for name, figures in parity.items():
        rows = ", ".join(map(str, figures.rows_tried))
        absolute = "" if figures.max_abs is None else f"max absolute {figures.max_abs:.2g}, "
        yield (
            f"  parity   {name}: {absolute}max relative {figures.max_rel:.2g}, "
            f"tolerance {figures.tolerance:.2g}, rows tried {rows}"
        )


def _parameters(count: int | None) -> str:
    return "? parameters" if count is None else f"{count:,} parameters"
