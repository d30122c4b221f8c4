"""Records survive their file, and the tables and promises say what the records say."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu import records
from benchmarks.gpu.networks import ON_GPU, PRECISIONS, SUBJECTS
from benchmarks.gpu.records import Begun, Cell, Failure, Killed, Machine, Record, Served
from benchmarks.gpu.report import in_short, report
from benchmarks.gpu.thresholds import ceiling, checks

CARD = Machine(
    date="2026-01-02 03:04 UTC",
    commit="abc1234",
    foldserve="not compiled",
    device="NVIDIA H100 80GB HBM3",
    driver="580.1",
    cuda="13.0",
    cudnn="9.13.0",
    onnxruntime="1.31.1",
    torch="2.11.0",
    python="3.12.3",
    processor="a processor",
    cores=16,
)
NONE = replace(CARD, device="none")
RESNET = ("resnet50_uint8", "fp16")


def cell(way: str = "ort", batch: int = 1, rows_s: float = 1000.0, **others: object) -> Cell:
    given = {"p50_ms": 1.0, "p99_ms": 2.0, "device": 0.5, "cpu_s": 0.25, "sessions": 1, **others}
    model, precision = given.pop("model", RESNET[0]), given.pop("precision", RESNET[1])
    return Cell(model, precision, way, batch, rows_s=rows_s, **given)  # type: ignore[arg-type]


def served(api_servers: int, connections: int, rows_s: float, **others: object) -> Served:
    given = {
        "p50_ms": 1.0,
        "p99_ms": 2.0,
        "device": 0.9,
        "cpu_s": 0.3,
        "api_cores": 0.5,
        "worker_cores": 0.6,
        "generator_cores": 0.7,
        "refused": 0,
        "failed": 0,
        **others,
    }
    model, precision = given.pop("model", RESNET[0]), given.pop("precision", RESNET[1])
    return Served(model, precision, api_servers, connections, rows_s, **given)  # type: ignore[arg-type]


def killed(**others: int) -> Killed:
    given = {"answered": 5000, "refused": 0, "failed": 0, "unanswered": 0, **others}
    return Killed(*RESNET, 2, 64, 30.0, kills=3, back_s=4.5, slowest_ms=4600.0, **given)


ALL: list[Record] = [CARD, cell(notes=["CUDA graphs for batches of 1 rows"]), served(1, 64, 900.0), killed()]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    for record in [*ALL, Begun("x"), Failure("one", "it broke", "x")]:
        records.append(path, record)
    assert records.read([path]) == [*ALL, Begun("x"), Failure("one", "it broke", "x")]


def test_a_line_that_was_cut_off_is_left_out_and_one_that_is_no_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    records.append(path, cell())
    with path.open("a") as file:
        file.write(records.to_line(cell(batch=8))[:40])
    assert records.read([path]) == [cell()]
    records.mend(path)
    records.append(path, cell(batch=32))
    assert records.read([path]) == [cell(), cell(batch=32)]
    path.write_text('{"kind": "cake"}\n')
    with pytest.raises(ValueError, match=r"cake.*is no record of benchmarks.gpu"):
        records.read([path])


def test_of_two_figures_of_one_thing_the_later_counts_over_all_files(tmp_path: Path) -> None:
    first, second = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    records.append(first, cell(rows_s=1.0))
    records.append(first, cell(batch=8))
    records.append(second, cell(rows_s=2.0))
    assert records.read([first, second]) == [cell(batch=8), cell(rows_s=2.0)]


def test_a_failure_is_forgotten_once_its_task_was_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    for record in (Begun("a"), Failure("a, 8 rows", "no", "a"), Failure("b", "no", "b"), Begun("a"), cell()):
        records.append(path, record)
    assert [one for one in records.read([path]) if isinstance(one, Failure)] == [Failure("b", "no", "b")]


def test_the_ceiling_is_the_best_of_onnx_runtime_whatever_batch_and_sessions() -> None:
    cells = [
        cell("ort", 32, 10.0),
        cell("ort-2", 128, 30.0),
        cell("ort-plain", 128, 20.0),
        cell("script", 128, 99.0),
    ]
    assert ceiling(cells, RESNET) == cells[1]
    assert ceiling(cells, ("resnet50_uint8", "fp32")) is None


def test_on_a_gpu_the_rows_promise_resnet50_in_fp16_from_bytes_and_the_graphs_promise_efficientnet() -> None:
    given: list[Record] = []
    for model in ON_GPU:
        for precision in PRECISIONS:
            of = {"model": model, "precision": precision}
            given += [
                cell("ort", 1, 100.0, p50_ms=0.7, **of),
                cell("ort-plain", 1, 80.0, p50_ms=1.4, **of),
                cell("ort-2", 128, 1000.0, **of),
                served(1, 1, 400.0, p50_ms=1.0, **of),
                served(1, 512, 700.0, **of),
                served(4, 512, 950.0, **of),
            ]
    rows = checks(given, on_gpu=True)
    promised = [one for one in rows if "served rows/s" in one.what]
    assert [(one.what, one.got, one.wanted) for one in promised] == [
        ("resnet50_uint8 fp16: served rows/s (4 API servers) / in-process (batch 128)", 0.95, 0.9)
    ]
    graphs = [one for one in rows if "CUDA graphs" in one.what]
    assert {one.what.split()[0] for one in graphs} == {"efficientnet_lite0_uint8", "efficientnet_lite0"}
    assert all(one.got == 0.5 and one.reached for one in graphs)
    latency = [one for one in rows if "over HTTP" in one.what]
    assert len(latency) == 12  # every network in every precision
    assert all(one.got == pytest.approx(0.3) and one.wanted == 0.4 for one in latency)


def test_every_request_that_had_no_answer_breaks_the_promise_of_the_kills() -> None:
    for name in ("refused", "failed", "unanswered"):
        (row,) = checks([killed(**{name: 1})], on_gpu=True)
        assert (row.got, row.reached) == (1, False)
    (row,) = checks([killed()], on_gpu=True)
    assert row.reached


def test_promises_without_figures_are_left_out() -> None:
    assert checks([cell("script")], on_gpu=True) == []
    assert checks([served(1, 512, 10.0)], on_gpu=True) == []


def test_the_report_names_the_machine_and_has_a_line_for_everything_measured() -> None:
    text = report([*ALL, cell(batch=128, rows_s=4000.0, device=None)])
    assert text.startswith(
        "2026-01-02 03:04 UTC, commit abc1234, foldserve not compiled: NVIDIA H100 80GB HBM3, driver 580.1, CUDA "
        "13.0, cuDNN 9.13.0; 16 cores of a processor; onnxruntime 1.31.1, torch 2.11.0, Python 3.12.3."
    )
    lines = text.splitlines()
    assert (
        "| uint8 | fp16 | ONNX Runtime, CUDA graphs | 1,000, 4,000 | 1, 1 | 2, 2 | 50, - | 0.25, 0.25 |"
        in lines
    )
    assert "| uint8 | fp16 | 1 | 64 | 900 | 0.23 | 1.00, 2.0 | 90 | 0.3 | 0.50, 0.60, 0.70 | 0, 0 |" in lines
    assert "| resnet50_uint8 | fp16 | 2 | 64 | 3 | 4.5 | 5,000 | 0 | 0 | 0 | 4,600 |" in lines
    assert "- CUDA graphs for batches of 1 rows: resnet50_uint8 fp16 (ONNX Runtime, CUDA graphs)" in lines
    assert "There was no GPU" not in text


def test_unfolded_is_compared_with_folded_where_both_were_measured() -> None:
    text = report(
        [
            cell("script", 1, p50_ms=2.0),
            cell("script-unfolded", 1, p50_ms=3.0),
            cell("plain-script", 1, p50_ms=4.0),
            cell("script", 8),
        ]
    )
    assert "### ResNet-50, TorchScript unfolded / folded" in text
    assert "| uint8 | fp16 | 1.50, - | -, - |" in text.splitlines()


def test_a_run_without_a_gpu_says_that_it_proves_nothing() -> None:
    text = report(
        [NONE, cell("ort", model="mlp", precision="fp32"), served(1, 1, 10.0, model="mlp", precision="fp32")]
    )
    assert ": no GPU; 16 cores" in text
    assert "nothing was promised of this" in text


def test_failures_are_listed_with_their_reasons_on_one_line() -> None:
    text = report([CARD, Failure("compile: resnet50, fp16", "took\n  longer than 240 s")])
    assert text.endswith(
        "### What could not be measured\n\n- compile: resnet50, fp16: took longer than 240 s"
    )


def test_every_record_has_a_line_of_progress() -> None:
    words = [in_short(one) for one in [*ALL, Failure("one", "it broke"), Begun("a task")]]
    assert "1,000 rows/s" in words[1]
    assert "0 failed" in words[3]
    assert words[4:] == ["failed: one: it broke", "a task"]


def test_networks_of_a_gpu_run_are_known_with_both_kinds_of_bodies() -> None:
    assert {(SUBJECTS[key].title, SUBJECTS[key].body) for key in ON_GPU} == {
        (title, body) for title in ("ResNet-50", "EfficientNet-Lite0") for body in ("float", "uint8")
    }
