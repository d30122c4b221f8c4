"""Changes of files are told by the kernel, however a file is changed."""

import os
import select
from collections.abc import Callable
from pathlib import Path

import pytest

from foldserve.service.host.file_changes import FileChanges


def rewritten(file: Path) -> None:
    file.write_text("new")


def renamed_over(file: Path) -> None:
    file.with_name("beside").write_text("new")
    os.replace(file.with_name("beside"), file)


def removed_and_linked(file: Path) -> None:
    file.unlink()
    file.symlink_to("elsewhere")


def touched_where_a_link_leads(file: Path) -> None:
    (file.parent / "deep" / "target").write_text("new")


def told(changes: FileChanges, within_ms: int = 5000) -> bool:
    waiting = select.poll()  # not select.select, which takes no descriptor above 1023
    waiting.register(changes, select.POLLIN)
    return bool(waiting.poll(within_ms))


@pytest.mark.parametrize("change", [rewritten, renamed_over, removed_and_linked, touched_where_a_link_leads])
def test_each_way_to_change_a_file_is_told_once(tmp_path: Path, change: Callable[[Path], None]) -> None:
    file = tmp_path / "file"
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "target").write_text("old")
    if change is touched_where_a_link_leads:
        file.symlink_to("deep/target")
    else:
        file.write_text("old")
    changes = FileChanges([file])
    assert not told(changes, 0)
    change(file)
    assert told(changes)
    changes.clear()
    assert not told(changes, 0)
    changes.close()


def test_folder_that_a_link_leads_to_later_is_watched_too(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    link = tmp_path / "file"
    link.symlink_to("first/file")
    changes = FileChanges([link])
    (tmp_path / "new").symlink_to("second/file")
    os.replace(tmp_path / "new", link)
    assert told(changes)
    changes.clear()
    (tmp_path / "second" / "file").write_text("changed in its place")
    assert told(changes)
    changes.close()


def test_folder_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    changes = FileChanges([tmp_path / "none" / "file"])
    changes.clear()
    changes.close()


def test_links_that_lead_to_links_are_watched_wherever_they_lie(tmp_path: Path) -> None:
    """As where the settings name a link to what certbot keeps, or a folder that is a link to a release."""
    for folder in ("settings", "live", "releases/1", "releases/2"):
        (tmp_path / folder).mkdir(parents=True)
    for number in ("1", "2"):
        (tmp_path / "releases" / number / "file").write_text(number)
    (tmp_path / "current").symlink_to("releases/1")
    (tmp_path / "live" / "file").symlink_to("../current/file")
    given = tmp_path / "settings" / "file"
    given.symlink_to(tmp_path / "live" / "file")
    changes = FileChanges([given])
    assert not told(changes, 0)
    (tmp_path / "next").symlink_to("releases/2")
    os.replace(tmp_path / "next", tmp_path / "current")
    assert told(changes)
    changes.clear()
    assert given.read_text() == "2"
    (tmp_path / "releases" / "2" / "file").write_text("new")
    assert told(changes)
    changes.clear()
    (tmp_path / "live" / "next").symlink_to(tmp_path / "releases/1/file")
    os.replace(tmp_path / "live" / "next", tmp_path / "live" / "file")
    assert told(changes)
    changes.close()


def test_links_that_lead_in_circles_are_no_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    changes = FileChanges([tmp_path / "a" / "file"])
    (tmp_path / "a").unlink()
    assert told(changes)
    changes.close()
