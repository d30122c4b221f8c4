"""The commands a person types: the Makefile, what CI runs, the pins."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

from tests.deploy.support import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()


def make(*arguments: str, cwd: Path = ROOT) -> str:
    command = ["make", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=30, check=True).stdout


def test_make_alone_lists_every_target_with_one_line_each() -> None:
    phony = re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)
    assert phony is not None
    listed = [line.split() for line in make("-s").splitlines()]
    assert [words[1] for words in listed] == phony[1].split()
    assert all(len(words) > 3 for words in listed)


def test_make_works_from_another_folder() -> None:
    assert "make test" in make("-s", "-C", str(ROOT), cwd=Path("/"))


def test_ci_runs_lint_types_and_both_kinds_of_tests_and_waits_for_nobody() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    assert lines[-1] == "exec make lint types test compiled </dev/null"


def test_an_interpreter_that_is_too_old_is_refused_with_the_fix(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\necho False\n")
    old.chmod(0o755)
    done = subprocess.run(
        ["sh", str(ROOT / "deploy/dev/make-venv.sh")],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": str(old)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode != 0
    assert "is not a Python 3.11 or newer" in done.stderr
    assert not (tmp_path / ".venv").exists()


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_requirement_of_every_extra_is_pinned_to_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(item for extra in extras.values() for item in extra)]
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.]+", pin) for pin in pins)
    pinned = [normal(pin.partition("==")[0]) for pin in pins]
    assert len(set(pinned)) == len(pinned)
    names = {normal(re.match(r"[A-Za-z0-9_.-]+", item)[0]) for item in wanted}
    assert names <= set(pinned)
    assert "torch==2.13.0" in pins
