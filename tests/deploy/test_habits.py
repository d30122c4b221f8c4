"""What looks after the sources between two changes: hooks of git, and the check of a release."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.deploy.support import ROOT

HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
RELEASABLE = """# Changelog

## [Unreleased]

## [1.2.3] - 2026-11-28

### Added
- A thing.

## [1.2.2] - 2026-10-01
"""


def run(*command: str | Path, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_hooks_are_the_programs_of_this_environment_and_fetch_nothing() -> None:
    assert [repository["repo"] for repository in HOOKS["repos"]] == ["local"]
    for hook in HOOKS["repos"][0]["hooks"]:
        assert hook["language"] == "system"
        assert ".venv/bin/python -m " in hook["entry"]


@pytest.fixture
def hooked(tmp_path: Path) -> Path:
    """A repository with our hooks in which one file is ill-formatted."""
    run("git", "init", "--quiet", cwd=tmp_path)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / ".gitignore").write_text(".venv\n")
    (tmp_path / ".pre-commit-config.yaml").write_text((ROOT / ".pre-commit-config.yaml").read_text())
    (tmp_path / "module.py").write_text("x  =  1\n")
    run("git", "add", ".", cwd=tmp_path)
    return tmp_path


def test_a_commit_of_a_file_that_ruff_would_write_otherwise_is_refused(hooked: Path, tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    command = (sys.executable, "-m", "pre_commit", "run")
    done = run(*command, cwd=hooked, PRE_COMMIT_HOME=home, SKIP="mypy,docs")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "hook id: ruff-format" in done.stdout
    assert "module.py:1" in done.stdout
    (hooked / "module.py").write_text("x = 1\n")
    run("git", "add", ".", cwd=hooked)
    done = run(*command, cwd=hooked, PRE_COMMIT_HOME=home, SKIP="mypy,docs")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A repository whose commit is all that a release must be, but for the wheels, which take a minute."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / ".gitignore").write_text(".venv\n")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "foldserve"\nversion = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text(RELEASABLE)
    run("git", "init", "--quiet", cwd=tmp_path)
    commit(tmp_path)
    run("git", "tag", "v1.2.3", cwd=tmp_path)
    return tmp_path


def commit(repository: Path) -> None:
    run("git", "add", ".", cwd=repository)
    who = ("-c", "user.name=tests", "-c", "user.email=tests@localhost")
    done = run("git", *who, "commit", "--quiet", "-m", "Release 1.2.3", cwd=repository)
    assert done.returncode == 0, done.stderr


def refusal(repository: Path) -> str:
    done = run("sh", ROOT / "deploy" / "dev" / "make-release.sh", cwd=repository)
    assert done.returncode != 0
    return done.stderr


def test_what_is_a_release_is_not_refused(released: Path) -> None:
    assert "no release" not in refusal(released), "what is missing is the script that makes the wheel alone"
    assert "make-wheel.sh" in refusal(released)


def test_a_release_of_what_is_not_committed_is_refused(released: Path) -> None:
    (released / "stray.py").touch()
    assert "no release: files differ from the commit or are not in it" in refusal(released)


def test_a_release_without_its_tag_is_refused(released: Path) -> None:
    (released / "module.py").touch()
    commit(released)
    assert "no release: this commit has no tag v1.2.3; git tag" in refusal(released)


@pytest.mark.parametrize(
    ("there", "instead", "told"),
    [
        ("## [1.2.3] - 2026-11-28", "## [1.2.4] - 2026-11-28", "CHANGELOG.md has no section of 1.2.3"),
        ("## [1.2.3] - 2026-11-28", "## [1.2.3]", "the section of 1.2.3 in CHANGELOG.md has no date"),
        ("## [Unreleased]\n", "## [Unreleased]\n- A line.\n", "CHANGELOG.md has lines under Unreleased"),
    ],
)
def test_a_release_that_the_changelog_does_not_tell_of_is_refused(
    released: Path, there: str, instead: str, told: str
) -> None:
    (released / "CHANGELOG.md").write_text(RELEASABLE.replace(there, instead))
    commit(released)
    run("git", "tag", "--force", "v1.2.3", cwd=released)
    assert f"no release: {told}" in refusal(released)
