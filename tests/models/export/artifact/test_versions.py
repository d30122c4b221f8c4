import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from foldserve.models.errors import NameNotUsable, NotWritable, VersionExists
from foldserve.models.export.artifact.versions import (
    check_name,
    check_version,
    new_version,
    versions,
)


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "../a", "a b", "-x", "a\n", "ä", "x" * 129, None, 3]
)
def test_names_that_are_no_folder_or_no_part_of_a_url_are_refused(name):
    with pytest.raises(NameNotUsable, match="cannot be a folder in a repository"):
        check_name(name)


def test_usual_names_are_taken():
    assert [check_name(n) for n in ("mlp", "resnet-50", "a.b_c", "_x", "3d")]


@pytest.mark.parametrize("version", [0, -1, "0", "01", "1.0", "v1", "", 1.0, True, None, "1" * 19])
def test_versions_that_are_no_positive_integer_are_refused(version):
    with pytest.raises(NameNotUsable, match="expected a positive integer"):
        check_version(version)


def test_a_version_appears_whole_with_the_rights_of_the_umask(tmp_path):
    with new_version(tmp_path, "m", 3) as folder:
        (folder / "model.onnx").write_bytes(b"abc")
        assert versions(tmp_path, "m") == ()
    assert (tmp_path / "m" / "3" / "model.onnx").read_bytes() == b"abc"
    assert versions(tmp_path, "m") == (3,)
    assert [p.name for p in (tmp_path / "m").iterdir()] == ["3"]
    assert (tmp_path / "m" / "3").stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_and_raise(repository: Path, error: type[BaseException]) -> None:
    with new_version(repository, "m", 1) as folder:
        (folder / "model.onnx").write_bytes(b"abc")
        raise error


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_any_error_in_the_block_leaves_nothing_not_even_the_folders_made_for_it(tmp_path, error):
    with pytest.raises(error):
        _write_and_raise(tmp_path / "deep" / "repository", error)
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_what_was_there_before(tmp_path):
    with new_version(tmp_path, "m", 1) as folder:
        (folder / "x").write_bytes(b"1")
    with pytest.raises(KeyError), new_version(tmp_path, "m", 2):
        raise KeyError
    assert (tmp_path / "m" / "1" / "x").read_bytes() == b"1"
    assert versions(tmp_path, "m") == (1,)


@contextmanager
def files_end_at(size: int):
    """The kernel refuses to write further than size, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_the_disk_does_not_take_leaves_nothing_and_says_so(tmp_path):
    with (
        pytest.raises(NotWritable, match=r"cannot write .*m/1: .*; nothing was left there. Free space"),
        files_end_at(10),
        new_version(tmp_path, "m", 1) as folder,
    ):
        (folder / "model.onnx").write_bytes(b"x" * 100)
    assert list(tmp_path.iterdir()) == []


def test_a_repository_that_is_a_file_is_told_as_not_writable(tmp_path):
    (tmp_path / "repository").write_bytes(b"")
    with pytest.raises(NotWritable, match="cannot write"), new_version(tmp_path / "repository", "m", 1):
        pass


def test_an_existing_version_is_refused_with_the_next_free_one(tmp_path):
    (tmp_path / "m" / "4").mkdir(parents=True)
    with pytest.raises(VersionExists, match=r"m/4 exists.*--version 5"), new_version(tmp_path, "m", 4):
        pass


def test_a_version_that_appears_meanwhile_is_kept_and_ours_goes(tmp_path):
    def write_while_another_export_ends() -> None:
        with new_version(tmp_path, "m", 1) as folder:
            (folder / "x").write_bytes(b"ours")
            other = tmp_path / "m" / "1"
            other.mkdir(parents=True)
            (other / "x").write_bytes(b"theirs")

    with pytest.raises(VersionExists):
        write_while_another_export_ends()
    assert [p.name for p in (tmp_path / "m").iterdir()] == ["1"]
    assert (tmp_path / "m" / "1" / "x").read_bytes() == b"theirs"


def test_versions_passes_over_everything_else_in_the_folder(tmp_path):
    for name in ("1", "10", "2", "02", "x", ".export-abc", "config.yaml"):
        (tmp_path / "m" / name).mkdir(parents=True)
    assert versions(tmp_path, "m") == (1, 2, 10)


def test_nothing_but_a_dot_folder_is_in_the_repository_until_the_version_is_whole(tmp_path):
    with new_version(tmp_path, "m", 1) as folder:
        assert folder.parent == tmp_path
        assert [entry.name[0] for entry in tmp_path.iterdir()] == ["."]
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]


_KILLED = """
import os, signal, sys
from pathlib import Path
from foldserve.models.export.artifact.versions import new_version
with new_version(Path(sys.argv[1]), "m", 1) as folder:
    (folder / "model.pt").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_export_left_is_removed_by_the_next_and_a_running_one_is_left_alone(tmp_path):
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], check=False)
    assert killed.returncode == -9
    (left,) = tmp_path.iterdir()
    assert (left / "model.pt").exists()
    (tmp_path / ".export-empty").mkdir()
    (tmp_path / ".export-file").write_bytes(b"somebody's")
    with new_version(tmp_path, "slow", 1) as running:
        (running / "model.pt").write_bytes(b"not yet whole")
        assert sorted(tmp_path.iterdir()) == sorted([running, tmp_path / ".export-file"])
        with new_version(tmp_path, "quick", 1):
            pass
        assert running.exists()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".export-file", "quick", "slow"]


def test_two_exports_of_one_new_model_at_once_end_in_one_version_and_one_told_so(tmp_path):
    with pytest.raises(VersionExists), new_version(tmp_path, "m", 1), new_version(tmp_path, "m", 1):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]
    assert versions(tmp_path, "m") == (1,)


def test_many_exports_that_begin_at_once_remove_nothing_of_each_other(tmp_path):
    def export(number: int) -> None:
        for version in range(1, 21):
            with new_version(tmp_path, f"m{number}", version) as folder:
                (folder / "model.pt").write_bytes(b"whole")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(export, range(8)))
    assert [versions(tmp_path, f"m{number}") for number in range(8)] == [tuple(range(1, 21))] * 8
    assert len(list(tmp_path.glob("m*/*/model.pt"))) == 160
