"""Folders of models and versions, and which of them are served."""

from pathlib import Path

import pytest

from service.errors import ConfigError
from service.model_config import VersionPolicy
from service.repository import read_repository, versions_to_serve
from tests.service.repositories import save_linear


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for version in ("1", "2", "10"):
        save_linear(tmp_path / "linear" / version / "model.onnx")
    save_linear(tmp_path / "other" / "1" / "model.onnx")
    return tmp_path


def test_highest_version_by_number_is_served_by_default(repository: Path) -> None:
    linear, other = read_repository(repository)
    assert [artifact.version for artifact in linear.artifacts] == ["10"]
    assert (linear.default_version, other.default_version) == ("10", "1")


def test_config_yaml_of_the_model_chooses_the_versions(repository: Path) -> None:
    (repository / "linear" / "config.yaml").write_text("version_policy: [2, 1]\nmax_batch_size: 3\n")
    linear, _ = read_repository(repository)
    assert [artifact.version for artifact in linear.artifacts] == ["1", "2"]
    assert linear.default_version == "2"
    assert {artifact.max_batch_size for artifact in linear.artifacts} == {3}


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        (VersionPolicy("latest"), ["10"]),
        (VersionPolicy("latest", count=2), ["2", "10"]),
        (VersionPolicy("latest", count=9), ["1", "2", "10"]),
        (VersionPolicy("all"), ["1", "2", "10"]),
        (VersionPolicy("specific", versions=("10", "1")), ["1", "10"]),
    ],
)
def test_policy_picks_versions(policy: VersionPolicy, served: list[str]) -> None:
    assert versions_to_serve("m", ["1", "2", "10"], policy) == served


def test_policy_that_names_a_missing_version_is_refused(repository: Path) -> None:
    (repository / "linear" / "config.yaml").write_text("version_policy: [3]\n")
    with pytest.raises(ConfigError, match="version_policy names 3, which the repository does not hold"):
        read_repository(repository)


def test_half_written_versions_and_files_are_left_alone(repository: Path) -> None:
    (repository / "linear" / ".11.writing").mkdir()
    (repository / ".cache").mkdir()
    (repository / "README.md").write_text("hello")
    assert [entry.name for entry in read_repository(repository)] == ["linear", "other"]


def test_problems_of_all_models_are_told_at_once(repository: Path) -> None:
    (repository / "linear" / "config.yaml").write_text("instances: 0\nwarmup: 1\n")
    (repository / "other" / "latest").mkdir()
    (repository / "empty").mkdir()
    (repository / "bad name").mkdir()
    with pytest.raises(ConfigError) as caught:
        read_repository(repository)
    told = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 5
    for part in (
        "instances is 0",
        "warmup is 1",
        "folder latest; expected whole numbers",
        "model empty has no",
    ):
        assert part in told
    assert "'bad name' cannot be a model's name" in told


def test_missing_and_empty_repositories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        read_repository(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="holds no model"):
        read_repository(tmp_path)
