"""Reports are read whole or not at all."""

from pathlib import Path

from service.worker_report import WorkerReport, read_report, remove_report, write_report


def test_report_comes_back_as_written_and_replaces_the_one_before(tmp_path: Path) -> None:
    assert read_report(tmp_path, "worker-0") is None
    write_report(tmp_path, "worker-0", WorkerReport(0.5, "broken: “ümläut”"))
    write_report(tmp_path, "worker-0", WorkerReport(1.5))
    assert read_report(tmp_path, "worker-0") == WorkerReport(1.5, "")
    assert [path.name for path in tmp_path.iterdir()] == ["worker-0.json"]


def test_removed_report_is_gone_and_may_be_removed_again(tmp_path: Path) -> None:
    write_report(tmp_path, "worker-0", WorkerReport(1.5))
    remove_report(tmp_path, "worker-0")
    remove_report(tmp_path, "worker-0")
    assert read_report(tmp_path, "worker-0") is None
