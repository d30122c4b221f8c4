"""What comes of requests: outcomes, stages, the guilty one alone failing, the late one never running."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from service.artifact import Artifact
from service.errors import DeadlinePassed, ModelFailed
from service.instance import Instance, Request
from service.metrics import Metrics
from service.signature import Signature, TensorSpec
from tests.service.repositories import config, metrics_at, sample

POISON = 666.0
LABELS = {"model": "linear", "version": "1"}


class DoublingSession:
    """y = 2 x; raises when it meets POISON. Remembers the rows of each run."""

    def __init__(self) -> None:
        self.runs: list[int] = []

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.runs.append(len(inputs["x"]))
        if (inputs["x"] == POISON).any():
            raise RuntimeError("poisoned\nat kernel 0x7f")
        return {"y": inputs["x"] * 2}


@pytest.fixture
def session() -> DoublingSession:
    return DoublingSession()


@pytest.fixture
def metrics(tmp_path: Path) -> Metrics:
    return metrics_at(tmp_path)


@pytest.fixture
def instance_of(session: DoublingSession, metrics: Metrics) -> Callable[..., Instance]:
    def make(clock: Callable[[], float] = lambda: 100.0, **keys: object) -> Instance:
        spec = TensorSpec("x", "FP32", (-1, -1)), TensorSpec("y", "FP32", (-1, -1))
        settings = config(**{"max_batch_size": 4, **keys})
        artifact = Artifact(
            model="linear",
            version="1",
            folder=Path(),
            backend="onnxruntime",
            file=Path("model.onnx"),
            signature=Signature((spec[0],), (spec[1],)),
            max_batch_size=4,
            manifest={},
        )
        return Instance(artifact, settings, session, metrics, clock)

    return make


def request(*values: float, length: int = 1, deadline_s: float | None = None) -> Request:
    """One row per value."""
    return Request({"x": np.repeat(np.float32(values)[:, None], length, axis=1)}, 99.0, deadline_s)


def test_each_request_gets_its_own_rows_doubled(instance_of: Callable[..., Instance]) -> None:
    outcomes = instance_of().run([request(1), request(2, 3), request(4)], "drained")
    answers = [outcome.outputs["y"].ravel().tolist() for outcome in outcomes if outcome.outputs]
    assert answers == [[2], [4, 6], [8]]
    assert [outcome.batch_rows for outcome in outcomes] == [4, 4, 4]


def test_request_larger_than_a_batch_is_answered_whole(
    instance_of: Callable[..., Instance], session: DoublingSession
) -> None:
    (outcome,) = instance_of().run([request(*range(10))], "drained")
    assert outcome.outputs is not None
    assert outcome.outputs["y"].ravel().tolist() == [2 * value for value in range(10)]
    assert session.runs == [4, 4, 2]


@pytest.mark.parametrize("guilty", [0, 3, 4, 31])
def test_one_poisoned_request_among_32_fails_alone(instance_of: Callable[..., Instance], guilty: int) -> None:
    values = [float(i) for i in range(32)]
    values[guilty] = POISON
    outcomes = instance_of().run([request(value) for value in values], "drained")
    failed = [i for i, outcome in enumerate(outcomes) if outcome.error is not None]
    assert failed == [guilty]
    for value, outcome in zip(values, outcomes, strict=True):
        assert outcome.outputs is None or outcome.outputs["y"].item() == 2 * value


def test_failure_names_the_model_and_its_first_line_only(instance_of: Callable[..., Instance]) -> None:
    (outcome,) = instance_of().run([request(POISON)], "drained")
    assert isinstance(outcome.error, ModelFailed)
    assert "model linear failed on this request: poisoned;" in str(outcome.error)
    assert "0x7f" not in str(outcome.error)


def test_one_failed_piece_fails_the_whole_large_request(instance_of: Callable[..., Instance]) -> None:
    outcomes = instance_of().run([request(1, 2, 3, 4, POISON), request(5)], "drained")
    assert isinstance(outcomes[0].error, ModelFailed)
    assert outcomes[1].outputs is not None


def test_late_request_is_answered_and_never_reaches_the_model(
    instance_of: Callable[..., Instance], session: DoublingSession
) -> None:
    outcomes = instance_of().run([request(1, deadline_s=100.0), request(2, deadline_s=100.5)], "drained")
    assert isinstance(outcomes[0].error, DeadlinePassed)
    assert outcomes[0].stages.queue == 1.0
    assert outcomes[1].outputs is not None
    assert session.runs == [1]


def test_nothing_runs_when_every_request_is_late(
    instance_of: Callable[..., Instance], session: DoublingSession
) -> None:
    instance_of().run([request(1, deadline_s=1.0)], "drained")
    assert session.runs == []


def test_stages_are_the_times_between_the_steps(instance_of: Callable[..., Instance]) -> None:
    ticks: Iterator[float] = iter(
        [100.0, 101.0, 103.0, 107.0, 115.0]
    )  # late? start, gathered, ran, scattered
    (outcome,) = instance_of(clock=lambda: next(ticks)).run([request(1)], "drained")
    stages = outcome.stages
    assert (stages.queue, stages.gather, stages.run, stages.scatter) == (2.0, 2.0, 4.0, 8.0)


def test_requests_of_other_lengths_do_not_meet_and_do_not_fail(
    instance_of: Callable[..., Instance], session: DoublingSession
) -> None:
    outcomes = instance_of().run(
        [request(1, length=2), request(2, length=3), request(3, length=2)], "drained"
    )
    assert [outcome.outputs["y"].shape for outcome in outcomes if outcome.outputs] == [(1, 2), (1, 3), (1, 2)]
    assert sorted(session.runs) == [1, 2]


def test_padded_rows_run_and_are_counted_but_not_answered(
    instance_of: Callable[..., Instance], session: DoublingSession, metrics: Metrics
) -> None:
    (outcome,) = instance_of(batch_buckets=[2, 4]).run([request(1, 2, 3)], "drained")
    assert outcome.outputs is not None
    assert len(outcome.outputs["y"]) == 3
    assert session.runs == [4]
    assert sample(metrics, "foldserve_padding_rows_total", **LABELS) == 1


def test_batches_count_by_rows_and_reason(instance_of: Callable[..., Instance], metrics: Metrics) -> None:
    instance_of().run([request(1, 2, 3, 4), request(5)], "waited")
    assert sample(metrics, "foldserve_batches_total", reason="full", **LABELS) == 1
    assert sample(metrics, "foldserve_batches_total", reason="waited", **LABELS) == 1
    assert sample(metrics, "foldserve_batch_rows_sum", **LABELS) == 5


def test_halving_counts_the_requests_that_ran_again(
    instance_of: Callable[..., Instance], metrics: Metrics
) -> None:
    instance_of().run([request(1), request(POISON)], "drained")
    assert sample(metrics, "foldserve_retried_total", **LABELS) == 2
