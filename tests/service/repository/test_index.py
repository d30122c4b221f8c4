"""Folders of models and versions, and which of them are served."""

import logging
import os
import re
from pathlib import Path

import pytest

from foldserve.service.errors import ConfigError
from foldserve.service.repository.index import read_repository, scan_repository, versions_to_serve
from foldserve.service.repository.model_config import VersionPolicy
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
    (repository / "linear" / "config.yaml").write_text("instances: 0\nwarmup: 2\n")
    save_linear(repository / "loose" / "latest" / "model.onnx")
    save_linear(repository / "bad name" / "1" / "model.onnx")
    with pytest.raises(ConfigError) as caught:
        read_repository(repository)
    told = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    for part in (
        "instances is 0",
        "warmup is 2",
        "model loose has no version folder, only 'latest'; expected loose/1/",
        "'bad name' cannot be a model's name",
    ):
        assert part in told


NO_MODELS = [
    "lost+found",
    "__MACOSX",
    "__pycache__",
    "System Volume Information",
    "$RECYCLE.BIN",
    "@eaDir",
    "empty",
    "incoming/1",
    "half/2/data",
    ".hidden/1",
    "linear/lost+found",
    "linear/__pycache__",
    "linear/v2",
    "linear/0",
    "linear/001",
    "linear/11",
    "linear/-1",
    "linear/1.5",
    "linear/\u0663",
    "linear/1000000000000000000000",
]


@pytest.mark.parametrize("folder", NO_MODELS)
@pytest.mark.parametrize("with_a_file", [False, True])
def test_folders_that_are_no_model_are_skipped_with_a_line_in_the_log(
    repository: Path, caplog: pytest.LogCaptureFixture, folder: str, with_a_file: bool
) -> None:
    (repository / folder).mkdir(parents=True)
    if with_a_file:
        (repository / folder / "._notes.txt").write_text("of a tool")
    with caplog.at_level(logging.INFO):
        found = scan_repository(repository)
    assert [entry.name for entry in found.entries] == ["linear", "other"]
    assert [artifact.version for artifact in found.entries[0].artifacts] == ["10"]
    assert found.broken == ()
    assert ("is skipped" in caplog.text) == (".hidden" not in folder)


def test_stray_files_and_broken_links_are_passed_over(repository: Path) -> None:
    for folder in (repository, repository / "linear"):
        (folder / "notes.txt").write_text("hello")
        (folder / "gone").symlink_to(folder / "nowhere")
        (folder / "round").symlink_to(folder / "round")
        os.mkfifo(folder / "pipe")
        (folder / "zero").symlink_to("/dev/zero")
    found = scan_repository(repository)
    assert ([entry.name for entry in found.entries], found.broken) == (["linear", "other"], ())


BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}]\n"
    for old, new in zip("abcdefghij", "bcdefghijk", strict=True)
)
BAD_CONFIGS = {
    "aliases of aliases": (BOMB, r"uses an alias"),
    "nested lists": ("instances: " + "[" * 20_000, "nested more than 16 levels"),
    "nested maps": ("{a: " * 2_000, "nested more than 16 levels"),
    "nested blocks": ("".join("  " * level + "a:\n" for level in range(150)), "nested more than 16 levels"),
    "no whole number": ("instances: !!int abc", "is not YAML"),
    "no number": ("max_queue_delay_ms: !!float abc", "is not YAML"),
    "no date": ("instances: 2020-13-45", "is not YAML"),
    "no time": ("instances: 2020-01-01T99:59:43Z", "is not YAML"),
    "many digits": ("instances: " + "9" * 5000, "is not YAML|has the number"),
    "many digits, hexadecimal": ("instances: 0x" + "f" * 5000, "has the number"),
    "a code": ("!!python/object/apply:os.system ['true']", "is not YAML"),
    "not UTF-8": (b"\xff\xfe\x00", "is not YAML"),
    "too large": ("# " + "x" * 2**16, "is larger than 65536 bytes"),
    "a list": ("[1, 2]", "holds a list"),
    "dim of infinity": (
        "signature: {inputs: [{name: x, datatype: FP32, shape: [-1, .inf]}], outputs: []}",
        "shape is",
    ),
    "buckets as a map": ("batch_buckets: {1: 2, 4: 5}", "batch_buckets is"),
    "batch of 10**12": ("max_batch_size: 1000000000000", "1 to 65536"),
    "key of a list": ("? [a, b]\n: c", "is not YAML|no key"),
    "set": ("instances: !!set {a, b}", "instances is"),
    "binary": ("instances: !!binary aGVsbG8=", "instances is"),
    "options that are none": ("session: {providers: [{CPUExecutionProvider: [1]}]}", "session.providers"),
    "nan": ("max_queue_delay_ms: .nan", "has nan where"),
    "tabs": ("\tinstances: 1", "is not YAML"),
    "two documents": ("a: 1\n---\nb: 2", "is not YAML"),
    "long key": ("x" * 1000 + ": 1", "is not a key"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_bad_config_yaml_costs_its_model_only(repository: Path, name: str) -> None:
    content, told = BAD_CONFIGS[name]
    (repository / "other" / "config.yaml").write_bytes(
        content if isinstance(content, bytes) else str(content).encode()
    )
    found = scan_repository(repository)
    assert [entry.name for entry in found.entries] == ["linear"]
    (broken,) = found.broken
    assert (broken.model, broken.version) == ("other", "")
    assert re.search(told, broken.problems[0]), broken.problems
    assert len(broken.problems[0]) < 1000


@pytest.mark.parametrize("name", ["config.yaml", "1/manifest.json"])
@pytest.mark.parametrize("kind", ["pipe", "device", "random", "folder", "nowhere", "round", "large", "deep"])
def test_file_that_is_none_costs_its_model_only(repository: Path, name: str, kind: str) -> None:
    path = repository / "other" / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(2**40)
    elif kind == "deep":
        path.write_text("[" * 60_000)
    else:
        targets = {"device": "/dev/zero", "random": "/dev/random", "nowhere": "nowhere", "round": path.name}
        path.symlink_to(targets[kind])
    found = scan_repository(repository)
    assert [entry.name for entry in found.entries] == ["linear"]
    assert [str(broken) for broken in found.broken] == ["other"]
    assert str(repository) not in found.broken[0].problems[0]


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "nowhere", "empty", "text"])
def test_model_file_that_is_none_costs_its_model_only(repository: Path, kind: str) -> None:
    path = repository / "other" / "1" / "model.onnx"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind in ("empty", "text"):
        path.write_text("hello" * (kind == "text"))
    else:
        path.symlink_to({"device": "/dev/zero", "nowhere": "nowhere"}[kind])
    found = scan_repository(repository)
    assert [entry.name for entry in found.entries] == ["linear"]
    assert [str(broken) for broken in found.broken] == ["other"]


def test_version_that_is_broken_costs_itself_only(repository: Path) -> None:
    (repository / "linear" / "config.yaml").write_text("version_policy: all\n")
    (repository / "linear" / "2" / "manifest.json").write_text("{")
    found = scan_repository(repository)
    assert [artifact.version for artifact in found.entries[0].artifacts] == ["1", "10"]
    assert [str(broken) for broken in found.broken] == ["linear/2"]


def test_only_broken_models_are_told_of_all(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1" / "manifest.json").write_text("{")
    found = scan_repository(tmp_path)
    assert (found.entries, [str(broken) for broken in found.broken]) == ((), ["a", "b"])


def test_model_with_a_config_yml_is_not_served_without_what_it_says(repository: Path) -> None:
    (repository / "other" / "config.yml").write_text("instances: 2\n")
    (broken,) = scan_repository(repository).broken
    assert broken.model == "other"
    assert broken.problems == ("model other has a config.yml; expected config.yaml: rename it, or remove it",)


def test_config_in_the_folder_of_a_version_is_told_where_it_belongs(repository: Path) -> None:
    version = next(path for path in (repository / "other").iterdir() if path.is_dir())
    (version / "config.yaml").write_text("instances: 2\n")
    (broken,) = scan_repository(repository).broken
    assert broken.model == "other"
    assert broken.problems == (
        f"model other has a config.yaml in its version {version.name}; expected one for all its versions, "
        "other/config.yaml: move it, or remove it",
    )


@pytest.mark.parametrize(
    ("part", "told"), [("linear", "a model's folder"), ("linear/1", "a version's folder")]
)
def test_part_of_a_repository_is_told_to_be_none(repository: Path, part: str, told: str) -> None:
    with pytest.raises(ConfigError, match=rf"is {told}.* and not a repository; .*: serve {repository}"):
        scan_repository(repository / part)


def test_missing_and_empty_repositories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        read_repository(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="holds no model"):
        read_repository(tmp_path)
