"""What a repository folder holds: <repository>/<model>/<version>/, and which versions are to be served.

Reads the folder once, at the start; every problem of every model is reported in one go. Folders whose name
begins with a dot are left alone (the export writes aside in one).
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from service.artifact import Artifact, read_artifact
from service.errors import ConfigError
from service.model_config import ModelConfig, VersionPolicy, read_model_config

CONFIG: Final = "config.yaml"
MODEL_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
VERSION_NAME: Final = re.compile(r"[1-9][0-9]{0,17}")


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


def read_repository(repository: Path) -> tuple[ModelEntry, ...]:
    """Every model of a repository, by name. Raises: ConfigError with all problems found."""
    if not repository.is_dir():
        raise ConfigError(
            f"repository {repository} is not a folder; expected <repository>/<model>/<version>/: "
            "`foldserve export` makes one"
        )
    problems: list[str] = []
    entries = []
    for folder in sorted(path for path in repository.iterdir() if path.is_dir() and path.name[0] != "."):
        try:
            entries.append(read_model(folder))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)
    if not entries:
        raise ConfigError(
            f"repository {repository} holds no model; expected <repository>/<model>/<version>/: "
            "`foldserve export` writes one"
        )
    return tuple(entries)


def read_model(folder: Path) -> ModelEntry:
    """One model's folder. Raises: ConfigError with all problems found."""
    name = folder.name
    if not MODEL_NAME.fullmatch(name):
        raise ConfigError(
            f"model folder {name!r} cannot be a model's name; expected letters, digits, '_', '-' and '.', at "
            "most 128: rename it"
        )
    config = read_model_config(folder / CONFIG, name)
    versions = {path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."}
    wrong = sorted(version for version in versions if not VERSION_NAME.fullmatch(version))
    if wrong:
        raise ConfigError(
            f"model {name} has the version folder{'s' * (len(wrong) > 1)} {', '.join(wrong)}; expected whole "
            "numbers from 1: rename or move away"
        )
    problems: list[str] = []
    artifacts = []
    for version in versions_to_serve(name, sorted(versions, key=int), config.version_policy):
        try:
            artifacts.append(read_artifact(folder / version, name, version, config))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)
    return ModelEntry(name, config, tuple(artifacts))


def versions_to_serve(model: str, versions: list[str], policy: VersionPolicy) -> list[str]:
    """Which of a model's versions (ascending) the policy serves. Raises: ConfigError when it is none."""
    if not versions:
        raise ConfigError(
            f"model {model} has no version folder; expected {model}/1/: export into it, or remove it"
        )
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
