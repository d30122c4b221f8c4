"""Requests and answers of the workloads, and what the rounds of a run become."""

import json
from typing import Any

import numpy as np
import pytest

from benchmarks import serve
from benchmarks.serving import in_process
from benchmarks.serving.peers import FAMILIES, PEERS
from benchmarks.serving.runs import Results
from benchmarks.serving.servers import CONTENDERS, plain
from benchmarks.serving.stats import Measured
from benchmarks.serving.workloads import LIGHT, MLP, RESNET, TOLERANCE, Work


class Doubling:
    """Stands for an onnxruntime session."""

    def get_inputs(self) -> list[Any]:
        return [type("Input", (), {"name": "x"})]

    def run(self, _: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [inputs["x"] * 2]


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Work:
    """The small network with an answer that needs no export."""
    work = Work(MLP.key, MLP.title, MLP.model, MLP.target, MLP.raw, MLP.row_shape)
    work.__dict__["expected"] = np.array([[1.0, -2.0]], np.float32)
    return work


def test_json_and_raw_bodies_hold_the_same_row() -> None:
    from_json = np.array(json.loads(MLP.json_body())["inputs"], np.float32)
    assert np.array_equal(from_json, np.frombuffer(MLP.raw_body(), np.float32).reshape(1, 10))


@pytest.mark.parametrize(("work", "nbytes"), [(RESNET, 12_288), (LIGHT, 602_112)])
def test_raw_bodies_have_the_size_that_their_titles_say(work: Work, nbytes: int) -> None:
    assert len(work.raw_body()) == nbytes
    assert f"({nbytes // 1000} KB)" in work.title


def test_an_answer_is_right_within_the_tolerance_and_wrong_beyond_it(known: Work) -> None:
    off = np.array([1.0, -2.0], np.float32) + np.float32(TOLERANCE)
    assert known.why_wrong(off) is None
    assert "off by" in str(known.why_wrong(off + np.float32(3 * TOLERANCE)))
    assert "3 numbers" in str(known.why_wrong(np.zeros(3, np.float32)))


def test_answers_are_read_by_position_or_by_name() -> None:
    _, read = plain("/predict")(MLP)
    assert np.array_equal(read(b'{"outputs": {"y": [[1, 2]]}}'), read(b'{"outputs": [[1, 2]]}'))


def test_medians_are_taken_over_rounds_for_servers_and_for_the_loop() -> None:
    runs = [Measured(req_s, 1.0, 2.0, 3.0, 0, 0.0) for req_s in (10.0, 30.0, 20.0)]
    results = Results({"mlp": {("bare", 16): runs}})
    results.loops["mlp"] = [{1: (5.0, 9.0)}, {1: (7.0, 3.0)}, {1: (6.0, 6.0)}]
    assert results.cells(MLP)["bare", 16].req_s == 20.0
    assert results.loop(MLP) == {1: (6.0, 6.0)}
    assert results.cells(LIGHT) == {}
    assert results.loop(LIGHT) == {}


def test_the_report_puts_the_fastest_first_and_tells_the_loop() -> None:
    results = Results(
        {
            "mlp": {
                ("bare", 16): [Measured(10.0, 1, 2, 3, 0, 0.0)],
                ("foldserve-1", 16): [Measured(20.0, 1, 2, 3, 0, 0.0)],
            }
        }
    )
    results.loops["mlp"] = [{8: (4000.0, 2.5)}]
    text = serve.report(results, CONTENDERS, [MLP], [16], 1, 2, [])
    assert text.index("**foldserve**, 1") < text.index("(bare ASGI")
    assert "at batch 8: 4,000 (2.5 µs)" in text


def test_the_loop_counts_rows_and_cpu_per_row() -> None:
    rows_s, cpu_us = in_process.measure(Doubling(), (4,), batch=8, seconds=0.05)
    assert rows_s > 0
    # One thread: it cannot use more CPU than there was time, within the clock's own step of a few ms.
    assert 0 < cpu_us * rows_s / 1e6 < 1.2


def test_every_contender_has_a_name_of_its_own_and_every_peer_an_environment() -> None:
    keys = [one.key for one in (*CONTENDERS, *PEERS)]
    assert len(keys) == len(set(keys))
    assert {one.family for one in PEERS} == set(FAMILIES)
