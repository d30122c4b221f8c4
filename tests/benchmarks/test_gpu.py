"""Loops without a server, processes of their own, artifacts and the device's figures: on fakes and small networks."""

import json
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import in_process, networks, served, subprocesses
from benchmarks.gpu.device import PERIOD_S, Utilisation
from benchmarks.gpu.in_process import WAYS, Job, measure, repeated
from benchmarks.gpu.loops import Looper, Step, Steps, loop
from benchmarks.gpu.networks import PRECISIONS, SUBJECTS
from benchmarks.gpu.records import Cell, Failure, Record
from foldserve.service.repository.index import read_repository

MLP = SUBJECTS["mlp"]


def sleeping(seconds: float) -> Callable[[], Steps]:
    def make() -> Steps:
        return lambda batch: lambda: time.sleep(seconds)

    return make


def test_a_loop_counts_the_rows_of_all_sessions_and_times_single_runs() -> None:
    loopers = [Looper(sleeping(0.01)), Looper(sleeping(0.01))]
    seen = loop(loopers, batch=8, seconds=0.2)
    # Two threads that sleep 10 ms for 8 rows; sleeping takes a little longer, on a busy machine much longer.
    assert 0 < seen.rows_s <= 2 * 8 / 0.01
    assert 10.0 <= seen.p50_ms <= seen.p99_ms
    assert seen.device is None
    for looper in loopers:
        looper.end()


def test_a_session_is_made_and_run_by_one_thread() -> None:
    seen: list[int] = []

    def make() -> Steps:
        seen.append(threading.get_ident())

        def steps(batch: int) -> Step:
            seen.append(threading.get_ident())
            return lambda: seen.append(threading.get_ident())

        return steps

    looper = Looper(make)
    loop([looper], 1, 0.0)
    assert set(seen) == {looper._thread.ident}
    assert threading.get_ident() not in seen


def test_what_a_session_raises_reaches_the_caller_and_the_others_do_not_wait_for_ever() -> None:
    def broken() -> Steps:
        def steps(batch: int) -> Step:
            if batch > 8:
                raise MemoryError("no room")
            return lambda: None

        return steps

    loopers = [Looper(sleeping(0.001)), Looper(broken)]
    with pytest.raises(MemoryError, match="no room"):
        loop(loopers, 128, 0.05)
    assert loop(loopers, 8, 0.05).rows_s > 0  # both are usable afterwards
    with pytest.raises(ZeroDivisionError):
        Looper(lambda: 1 // 0)  # type: ignore[arg-type, return-value]


def test_rows_are_repeated_up_to_the_batch() -> None:
    array = np.arange(6).reshape(3, 2)
    assert repeated(array, 5)[:, 0].tolist() == [0, 2, 4, 0, 2]
    assert repeated(array, 2).flags.c_contiguous


def test_a_way_or_a_batch_that_fails_costs_no_other_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []

    def opens(network: object, graphs: bool, notes: list[str]) -> Steps:
        if not graphs:
            raise RuntimeError("cannot be opened")
        made.append(graphs)
        notes.append("a note")

        def steps(batch: int) -> Step:
            if batch == 8:
                raise MemoryError("no room")
            return lambda: None

        return steps

    monkeypatch.setitem(in_process._OPENS, "onnx", opens)
    job = Job("mlp", "fp32", ["ort", "ort-2", "ort-plain"], [1, 8], "cpu", seconds=0.01)
    found = list(measure(Job(**json.loads(job.to_text()))))
    cells = [one for one in found if isinstance(one, Cell)]
    assert [(one.way, one.batch, one.sessions, list(one.notes)) for one in cells] == [
        ("ort", 1, 1, ["a note"]),
        ("ort-2", 1, 2, ["a note"]),
    ]
    assert len(made) == 2  # the first way's session is one of the second's two
    assert [(one.what, one.why) for one in found if isinstance(one, Failure)] == [
        ("mlp, fp32, ONNX Runtime, CUDA graphs, 8 rows", "MemoryError: no room"),
        ("mlp, fp32, ONNX Runtime, CUDA graphs, 2 sessions, 8 rows", "MemoryError: no room"),
        ("mlp, fp32, ONNX Runtime, no graphs", "RuntimeError: cannot be opened"),
    ]


def test_ways_that_share_sessions_follow_each_other() -> None:
    opened = [(way.opens, way.choice) for way in WAYS.values()]
    assert len(list(dict.fromkeys(opened))) == sum(
        one != before for before, one in zip([None, *opened], opened, strict=False)
    )


class Nvml(types.ModuleType):
    """Stands for pynvml."""

    class NVMLError(Exception):
        pass

    def __init__(self, told: list[int]) -> None:
        super().__init__("pynvml")
        self._told = told
        self.asked = threading.Event()

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's name
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        return f"handle of {uuid}"

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> object:  # noqa: N802
        assert handle == "handle of GPU-1"
        if not self._told:
            self.asked.set()
            raise self.NVMLError
        return types.SimpleNamespace(gpu=self._told.pop(0))


def test_the_devices_figure_is_the_mean_of_what_the_driver_told(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml([50, 100])
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    with Utilisation("GPU-1") as device:
        assert nvml.asked.wait(100 * PERIOD_S)  # it has told all and then fails
    assert device.mean == 0.75
    with Utilisation("") as device:
        pass
    assert device.mean is None


def test_a_driver_that_does_not_tell_costs_no_other_figure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    looper = Looper(sleeping(0.001))
    seen = loop([looper], 1, 0.01, uuid="GPU-1")
    assert seen.rows_s > 0
    assert seen.device is None
    assert "how busy GPU-1 is cannot be told" in capsys.readouterr().err


def test_a_task_that_fails_in_whatever_way_is_told_and_the_next_begins() -> None:
    def run() -> Iterator[Record]:
        yield Failure("a part of it", "why")
        raise KeyError("gone")

    assert list(gpu._failures_told(gpu.Task("all of it", run))) == [
        Failure("a part of it", "why", "all of it"),
        Failure("all of it", "KeyError: 'gone'", "all of it"),
    ]


def test_a_program_that_crashes_or_hangs_is_told_with_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "crashing.py").write_text(
        "import sys\n"
        "print('chatter of a library')\n"
        'print(\'{"kind": "begun", "task": "half"}\', flush=True)\n'
        "sys.exit('the card is gone')\n"
    )
    (tmp_path / "hanging.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    first, failure = subprocesses.records("a try", "crashing", "", tmp_path / "log", 60.0)
    assert first.key == ("begun", "half")
    assert failure == Failure("a try", "ended with 1: the card is gone")
    assert list(subprocesses.records("a try", "hanging", "", tmp_path / "log", 0.3)) == [
        Failure("a try", "took longer than 0.3 s")
    ]


def artifact(repository: Path, name: str, version: int) -> Path:
    folder = repository / name / str(version)
    folder.mkdir(parents=True)
    for file in ("model.onnx", "model.pt"):
        (folder / file).write_bytes(b"")
    tensor = {"datatype": "FP32", "shape": [-1, 2]}
    manifest = {
        "format_version": 1,
        "name": name,
        "version": str(version),
        "inputs": [{"name": "x", **tensor}],
        "outputs": [{"name": "y", **tensor}],
        "files": {file: {"sha256": "0" * 64, "size": 0} for file in ("model.onnx", "model.pt")},
        "parity": {kind: {"max_rel": 0.0, "tolerance": 1e-4} for kind in ("onnx", "torchscript")},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", False), ("tf32", True)])
def test_tf32_is_the_fp32_artifact_with_a_setting_of_the_session(
    tmp_path: Path, precision: str, tf32: bool
) -> None:
    artifact(tmp_path / "all", "mlp", 2)
    newest = artifact(tmp_path / "all", "mlp", 10)
    for _ in range(2):  # made again, it is the same
        made = networks.serving_folder(
            MLP, PRECISIONS[precision], tmp_path / "all", tmp_path / "one", 128, on_gpu=True
        )
    (entry,) = read_repository(made)
    assert [one.folder.resolve() for one in entry.artifacts] == [newest]
    assert entry.artifacts[0].max_batch_size == 128
    assert entry.config.session.tf32 is tf32
    assert entry.config.batch_buckets == ()  # as users have them
    assert entry.config.queue.max_bytes >= 512 * 3 * 224 * 224 * 4  # 512 connections with float bodies


def test_fp16_is_an_artifact_of_its_own_and_one_that_is_not_there_is_told(tmp_path: Path) -> None:
    command = networks.export_command(MLP, PRECISIONS["fp16"], tmp_path)
    assert command[command.index("--name") + 1] == "mlp_fp16"
    with pytest.raises(RuntimeError, match=r"has no model.onnx of mlp_fp16; export it"):
        networks.serving_folder(MLP, PRECISIONS["fp16"], tmp_path, tmp_path / "one", 8, on_gpu=False)


def test_an_export_that_fails_is_told_with_its_own_words(tmp_path: Path) -> None:
    wrong = networks.Subject("mlp", "", "float", "no_such_network")
    with pytest.raises(RuntimeError, match=r"ended with 2: .*no network 'no_such_network'"):
        networks.export(wrong, PRECISIONS["fp32"], tmp_path, tmp_path / "log")


def test_cores_are_counted_by_process_over_its_threads() -> None:
    before = {(1, 1): 1_000_000_000, (1, 2): 0, (2, 2): 0}
    after = {(1, 1): 2_000_000_000, (1, 2): 500_000_000, (2, 2): 0, (3, 3): 4_000_000_000}
    assert served.used_cores(before, after, 2.0) == {1: 0.75, 2: 0.0, 3: 2.0}


def test_without_a_gpu_the_command_ends_with_2_and_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from foldserve.service.backends import devices
    from foldserve.service.backends.cuda.probe import CudaState

    monkeypatch.setattr(devices, "cuda_state", lambda: CudaState(0, "there is no NVIDIA driver"))
    assert gpu.main(["--out", str(tmp_path / "out"), "--repository", str(tmp_path / "all")]) == 2
    told = capsys.readouterr()
    assert "there is no NVIDIA driver; fix that, or use --device cpu" in told.err
    assert told.out == ""
    assert not (tmp_path / "out").exists()


def test_the_report_of_a_file_that_is_not_there_ends_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["--report", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--parts", "in-process,cake"], "cake: expected some of export, in-process"),
        (["--networks", "resnet51"], "resnet51: expected some of resnet50,"),
        (["--batches", "0,8"], "expected whole numbers from 1"),
    ],
)
def test_words_that_are_not_known_are_refused(
    wrong: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        gpu.main(wrong)
    assert told in capsys.readouterr().err
