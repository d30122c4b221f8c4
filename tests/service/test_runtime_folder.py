"""The folder goes with its server, however that ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from service.runtime_folder import RuntimeFolder, default_parent, remove_stale

HOLD = """
import sys
from pathlib import Path
from service.runtime_folder import RuntimeFolder
with RuntimeFolder(Path(sys.argv[1])) as folder:
    print(folder.path, flush=True)
    sys.stdin.read()
"""


def holder(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_folder_is_removed_at_the_end(tmp_path: Path) -> None:
    with RuntimeFolder(tmp_path) as folder:
        (folder.path / "file").write_text("x")
        assert str(os.getpid()) in folder.path.name
    assert list(tmp_path.iterdir()) == []


def test_folder_of_a_living_server_is_left_alone(tmp_path: Path) -> None:
    process, folder = holder(tmp_path)
    assert remove_stale(tmp_path) == []
    assert folder.is_dir()
    process.communicate()
    assert not folder.exists()


def test_folder_of_a_killed_server_is_removed_by_the_next_start(tmp_path: Path) -> None:
    process, folder = holder(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert folder.is_dir()
    with RuntimeFolder(tmp_path) as mine:
        assert not folder.exists()
        assert mine.path.is_dir()


def test_what_others_keep_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "someone-elses").mkdir()
    (tmp_path / "foldserve-file").write_text("not a folder")
    assert remove_stale(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foldserve-file", "someone-elses"]


def test_shared_memory_is_used_where_there_is_some() -> None:
    assert default_parent() == Path("/dev/shm") or not Path("/dev/shm").is_dir()
