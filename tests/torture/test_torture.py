"""The torture in small: each part with a few seconds of load. `make torture` has the long one."""

from pathlib import Path

import pytest

from tests.torture import hostile, trouble
from tests.torture.counts import NEVER, Counts
from tests.torture.fuzz_codecs import fuzz_codecs
from tests.torture.greedy.runner import all_kinds
from tests.torture.parts import Budget, ended, fuzzed, fuzzed_bodies, harmed, unharmed
from tests.torture.protocols.table import PROTOCOLS

SERVED = ("linear", "digits", "pair", "colours")
"""Without torch, whose import is most of a worker's start; `make torture` has the fourth."""
SMALL_HOGS = (
    "scrape",
    "spaces in a shape",
    "sizes in an npy header",
    "JSON, a wrong last value",
    "heads without bodies",
    "OIP, a wrong last value",
    "raw, a bomb",
    "a picture that claims much",
    "gRPC typed, 1 MiB",
    "gRPC, a storm of cancels",
    "gRPC, a storm of deadlines",
    "gRPC, streams nobody reads",
    "gRPC, bytes",
)


HURRY = 3.0
"""So many times as often as in `make torture` is something killed or stopped: a test has seconds."""


def broken(counts: Counts) -> list[str]:
    """What does not hold, and what it looked like; the counts are shown when a test fails."""
    print(counts.line())
    return [*counts.broken_bounds(), *counts.shown()]


def test_mutated_bodies_become_what_numpy_reads_or_a_short_error_in_bounded_time() -> None:
    assert broken(fuzz_codecs(seed=1, bodies=30_000)) == []


@pytest.mark.e2e
def test_mutated_requests_get_an_answer_or_an_end_and_no_5xx(tmp_path: Path) -> None:
    assert broken(fuzzed(tmp_path, 1, SERVED, requests=4_000)) == []


@pytest.mark.e2e
def test_mutated_bodies_of_every_protocol_are_answered_without_a_fault(tmp_path: Path) -> None:
    assert broken(fuzzed_bodies(tmp_path, 1, SERVED, bodies=4_000)) == []


@pytest.mark.e2e
def test_every_answer_is_the_clients_own_beside_clients_that_misbehave(tmp_path: Path) -> None:
    few = tuple(hog for hog in all_kinds() if hog.name in SMALL_HOGS)
    assert len(few) == len(SMALL_HOGS)
    counts = unharmed(tmp_path, Budget(verified=6_000), 1, few, SERVED)
    assert counts.by_protocol.keys() == {protocol.name for protocol in PROTOCOLS}
    counts.stall_ms = None  # a bound in milliseconds: for `make torture`, with the machine to itself
    assert broken(counts) == []


@pytest.mark.e2e
def test_killed_workers_cost_no_request_and_none_dies_otherwise(tmp_path: Path) -> None:
    zero = (*NEVER, "broken", "unready", "turned_away", "expired")
    appetite, budget = trouble.WORKERS.times(HURRY), Budget(verified=3_000, harms=3)
    counts = harmed(tmp_path, budget, 1, appetite, SERVED, part="workers killed", zero=zero)
    assert broken(counts) == []


@pytest.mark.e2e
def test_whatever_is_killed_or_stopped_no_answer_is_wrong_and_everything_comes_back(tmp_path: Path) -> None:
    appetite, budget = trouble.EVERYTHING.times(HURRY), Budget(verified=3_000, harms=8)
    counts = harmed(tmp_path, budget, 2, appetite, SERVED, part="everything")
    assert broken(counts) == []


@pytest.mark.e2e
def test_what_is_sent_before_the_end_of_the_grace_time_is_answered(tmp_path: Path) -> None:
    assert broken(ended(tmp_path, 2, 1, SERVED)) == []


@pytest.mark.e2e
def test_good_model_is_served_whatever_lies_beside_it(tmp_path: Path) -> None:
    counts = Counts("hostile repositories")
    hostile.beside(tmp_path, list(hostile.cases()), counts)
    assert broken(counts) == []
