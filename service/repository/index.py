"""What a repository folder holds: <repository>/<model>/<version>/, and which versions are to be served.

Reads the folder once, at the start. Folders that hold no model are skipped with a line in the log: a disk's
lost+found, what an archive or a tool left, a version that is still being copied. A model that holds something which
cannot be served is broken: that is reported, and the others are served.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from foldserve.service.artifact.manifest import MANIFEST
from foldserve.service.artifact.names import MODEL_NAME, VERSION_NAME
from foldserve.service.errors import ConfigError
from foldserve.service.repository.artifact import Artifact, read_artifact
from foldserve.service.repository.model_config import ModelConfig, VersionPolicy, read_model_config

CONFIG: Final = "config.yaml"
_MODEL_SUFFIXES: Final = (".onnx", ".pt")

_log = logging.getLogger("foldserve.repository")


@dataclass(frozen=True)
class ModelEntry:
    """A model to be served. artifacts: its versions to be served, ascending; the last is the default."""

    name: str
    config: ModelConfig
    artifacts: tuple[Artifact, ...]

    @property
    def default_version(self) -> str:
        """The version that serves a request which names none: the highest."""
        return self.artifacts[-1].version


@dataclass(frozen=True)
class Broken:
    """What cannot be served though it is to be. version: "" = the whole model."""

    model: str
    version: str
    problems: tuple[str, ...]

    def __str__(self) -> str:
        name = self.model if MODEL_NAME.fullmatch(self.model) else repr(self.model)[:200]
        return f"{name}/{self.version}" if self.version else name


@dataclass(frozen=True)
class Repository:
    """What can be served, by name, and what cannot."""

    entries: tuple[ModelEntry, ...]
    broken: tuple[Broken, ...]

    def problems(self) -> list[str]:
        """Of all that is broken."""
        return [problem for one in self.broken for problem in one.problems]


def read_repository(repository: Path) -> tuple[ModelEntry, ...]:
    """Every model of a repository that must be whole, by name. Raises: ConfigError with all problems found."""
    found = scan_repository(repository)
    if found.broken:
        raise ConfigError(*found.problems())
    return found.entries


def scan_repository(repository: Path) -> Repository:
    """What a repository holds. Raises: ConfigError when it holds no model, not even a broken one."""
    try:
        folders = [path for path in repository.iterdir() if path.name[0] != "." and path.is_dir()]
    except OSError as error:
        raise ConfigError(
            f"repository {repository} is not a folder that can be read ({error.strerror}); expected a folder with "
            "<repository>/<model>/<version>/: `foldserve export` makes one"
        ) from error
    entries: list[ModelEntry] = []
    broken: list[Broken] = []
    for folder in sorted(folders):
        if holds_model(folder):
            entry, problems = read_model(folder)
            entries += [entry] if entry else []
            broken += [
                Broken(one.model, one.version, tuple(_without(repository, text) for text in one.problems))
                for one in problems
            ]
    if not entries:
        _check_is_repository(repository, bool(broken))
    return Repository(tuple(entries), tuple(broken))


def holds_model(folder: Path) -> bool:
    """Whether a folder in a repository is meant to be a model; if not, the log says why it is skipped."""
    name, valid = folder.name, MODEL_NAME.fullmatch(folder.name) is not None
    try:
        inside = list(folder.iterdir())
        if any(has_model_file(path) for path in [folder, *(path for path in inside if path.is_dir())]):
            return True
    except OSError as error:
        if valid:
            return True  # which read_model tells of
        _log.info("folder %r of the repository is skipped: it cannot be read (%s)", name, error.strerror)
        return False
    _log.info(
        "folder %r of the repository is skipped: it holds no version folder with a model file%s",
        *(name, "" if inside else ", it is empty"),
    )
    return False


def has_model_file(folder: Path) -> bool:
    """Whether a folder directly holds a manifest, or a file that could be a model. Raises: OSError."""
    return any(path.name == MANIFEST or path.suffix in _MODEL_SUFFIXES for path in folder.iterdir())


def read_model(folder: Path) -> tuple[ModelEntry | None, list[Broken]]:
    """One model's folder: what of it can be served, if anything, and what is broken."""
    name = folder.name
    try:
        if not MODEL_NAME.fullmatch(name):
            raise ConfigError(
                f"model folder {name!r} cannot be a model's name; expected letters, digits, '_', '-' and '.', at "
                "most 128: rename it"
            )
        config = read_model_config(folder / CONFIG, name)
        versions = versions_to_serve(name, _versions_in(folder), config.version_policy)
    except ConfigError as error:
        return None, [Broken(name, "", error.problems)]
    artifacts: list[Artifact] = []
    broken: list[Broken] = []
    for version in versions:
        try:
            artifacts.append(read_artifact(folder / version, name, version, config))
        except ConfigError as error:
            broken.append(Broken(name, version, error.problems))
        except Exception:  # one model's folder, whatever is in it, must not keep the others from serving
            _log.exception("model %s version %s cannot be read", name, version)
            broken.append(
                Broken(name, version, (f"{name}/{version} cannot be read; the server's log says why",))
            )
    if not artifacts:
        return None, [Broken(name, "", tuple(text for one in broken for text in one.problems))]
    return ModelEntry(name, config, tuple(artifacts)), broken


def _versions_in(folder: Path) -> list[str]:
    """The names of the version folders that hold something, ascending. Raises: ConfigError when there is none."""
    versions: list[str] = []
    passed_over: list[str] = []
    misplaced = False
    try:
        for path in folder.iterdir():
            if path.name[0] == "." or not path.is_dir():
                misplaced |= path.suffix in _MODEL_SUFFIXES
            elif VERSION_NAME.fullmatch(path.name) and has_model_file(path):
                versions.append(path.name)
            else:
                passed_over.append(path.name)
    except OSError as error:
        raise ConfigError(
            f"model {folder.name} cannot be read: {error.strerror} ({error.filename})"
        ) from error
    for name in sorted(passed_over):
        why = "it holds no model file" if VERSION_NAME.fullmatch(name) else "no whole number from 1"
        _log.info("folder %r of model %s is skipped: %s", name, folder.name, why)
    if not versions:
        seen = (
            f", only {', '.join(repr(name[:50]) for name in sorted(passed_over)[:5])}" if passed_over else ""
        )
        seen += " and a model file beside them" if misplaced and passed_over else ""
        seen += ", only a model file" if misplaced and not passed_over else ""
        raise ConfigError(
            f"model {folder.name} has no version folder{seen}; expected {folder.name}/1/ with the model's files: "
            "versions are whole numbers from 1; move them there, or export into it"
        )
    return sorted(versions, key=int)


def _check_is_repository(repository: Path, holds_broken: bool) -> None:
    """Raise ConfigError for a folder without any model, also when it is a part of a repository instead of one."""
    expected = "expected <repository>/<model>/<version>/"
    if has_model_file(repository):
        raise ConfigError(
            f"{repository} is a version's folder, with a model in it, and not a repository; {expected}: serve "
            f"{repository.absolute().parent.parent}, if the folder has that layout"
        )
    if any(
        VERSION_NAME.fullmatch(path.name) and path.is_dir() and has_model_file(path)
        for path in repository.iterdir()
    ):
        raise ConfigError(
            f"{repository} is a model's folder, with versions in it, and not a repository; {expected}: serve "
            f"{repository.absolute().parent}"
        )
    if not holds_broken:
        raise ConfigError(
            f"repository {repository} holds no model; {expected}: `foldserve export` writes one"
        )


def _without(repository: Path, text: str) -> str:
    """A text with the names of files as they are in the repository: it is shown to clients too."""
    for prefix in {f"{repository}/", f"{repository.absolute()}/"}:
        text = text.replace(prefix, "")
    return text


def versions_to_serve(model: str, versions: list[str], policy: VersionPolicy) -> list[str]:
    """Which of a model's versions (ascending) the policy serves. Raises: ConfigError when one of them is not there."""
    if policy.kind == "all":
        return versions
    if policy.kind == "latest":
        return versions[-policy.count :]
    missing = [version for version in policy.versions if version not in versions]
    if missing:
        raise ConfigError(
            f"config.yaml of model {model}: version_policy names {', '.join(missing)}, which the repository "
            f"does not hold; expected some of {', '.join(versions)}"
        )
    return [version for version in versions if version in policy.versions]
