"""A build compiles where that can be, and says why where not: setup.py."""

import shutil
from pathlib import Path

import pytest

from tests.wheel import build_wheel, unpack, wheel_in

# A mypyc whose first module compiles and whose second does not.
HALF_A_COMPILER = """
from setuptools import Extension

def mypycify(paths, target_dir, **options):
    sources = {"whole": "#include <Python.h>\\nPyMODINIT_FUNC PyInit_whole(void) { return NULL; }", "broken": "no C"}
    for name, source in sources.items():
        with open(f"{target_dir}/{name}.c", "w") as file:
            file.write(source)
    return [Extension(f"foldserve.{name}", [f"{target_dir}/{name}.c"]) for name in sources]
"""


@pytest.fixture(scope="module")
def no_compiler(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which none is found, whatever this Python was itself built with."""
    return {"PATH": str(tmp_path_factory.mktemp("path")), "CC": "cc"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, no_compiler: dict[str, str]) -> tuple[Path, str]:
    """What `pip install .` makes where there is no compiler, and what is said about it."""
    folder = tmp_path_factory.mktemp("wheel")
    done = build_wheel(folder, **no_compiler)
    assert done.returncode == 0, done.stderr
    return wheel_in(folder), done.stderr


def test_where_no_compiler_is_found_the_wheel_is_for_every_machine_and_the_build_says_so(
    wheel: tuple[Path, str],
) -> None:
    file, said = wheel
    assert file.name.endswith("-py3-none-any.whl")
    assert "foldserve is NOT compiled: no C compiler with Python's headers works here" in said
    assert "apt-get install gcc" in said


def test_a_build_that_must_compile_and_cannot_fails_with_the_reason(
    tmp_path: Path, no_compiler: dict[str, str]
) -> None:
    done = build_wheel(tmp_path, COMPILE_FOLDSERVE="1", **no_compiler)
    assert done.returncode != 0
    assert "foldserve cannot be compiled: no C compiler with Python's headers works here" in done.stderr
    assert list(tmp_path.glob("*.whl")) == []


def test_whether_to_compile_is_asked_for_by_1_or_0_alone(tmp_path: Path) -> None:
    done = build_wheel(tmp_path, COMPILE_FOLDSERVE="yes")
    assert done.returncode != 0
    assert "COMPILE_FOLDSERVE is 'yes'; expected 1 (compile or fail) or 0 (do not compile)" in done.stderr


def test_an_editable_install_is_never_compiled(tmp_path: Path, no_compiler: dict[str, str]) -> None:
    done = build_wheel(tmp_path, "editable_wheel", COMPILE_FOLDSERVE="1", **no_compiler)
    assert done.returncode == 0, done.stderr
    assert wheel_in(tmp_path).name.endswith("-py3-none-any.whl")


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_compile_that_fails_half_way_leaves_nothing_in_the_wheel(tmp_path: Path) -> None:
    package = tmp_path / "path" / "mypyc"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "build.py").write_text(HALF_A_COMPILER)
    built = tmp_path / "built"
    built.mkdir()
    done = build_wheel(built, PYTHONPATH=str(package.parent))
    assert done.returncode == 0, done.stderr
    assert "foldserve is NOT compiled: compiling it failed" in done.stderr
    assert wheel_in(built).name.endswith("-py3-none-any.whl")
    names = unpack(wheel_in(built), tmp_path / "unpacked")
    assert "foldserve/service/engine/admission.py" in names
    assert [name for name in names if name.endswith((".so", ".c"))] == []
