"""The statistics extension: what was counted of a model since the start, as counts and nanoseconds.

Made of what /metrics says, so that the two cannot differ, and both are exact over all processes. Cumulative: a client
samples twice and divides.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from foldserve.service.metrics.catalog import BATCHES, REQUEST_ROWS, REQUESTS, STAGE_DURATION

_STAGES: Final = {
    "queue": ("queue",),
    "compute_input": ("decode", "gather"),
    "compute_infer": ("run",),
    "compute_output": ("scatter", "encode"),
}
"""Ours for each of Triton's."""
_SUCCESS: Final = "200"
_READ: Final = (
    REQUESTS.name,
    f"{REQUEST_ROWS.name}_sum",
    *(f"{STAGE_DURATION.name}_{part}" for part in ("sum", "count")),
    BATCHES.name,
)

Key = tuple[str, str]
"""Model and version."""


def statistics(exposition: str, asked: Sequence[Key]) -> list[dict[str, Any]]:
    """`model_stats` of these versions. exposition: /metrics as Prometheus' text."""
    wanted = frozenset(asked)
    samples: dict[Key, list[Sample]] = defaultdict(list)
    for sample in _samples(exposition, {model for model, _ in asked}):
        key = (sample.labels.get("model", ""), sample.labels.get("version", ""))
        if key in wanted:
            samples[key].append(sample)
    return [_of_version(key, samples[key]) for key in asked]


def _samples(exposition: str, models: Iterable[str]) -> Iterable[Sample]:
    """What is read here of the exposition, of these models. Buckets and other models are most of it, and parsing a line
    takes long."""
    of_models = re.compile("|".join(re.escape(f'model="{name}"') for name in models))
    lines = [line for line in exposition.splitlines() if line.startswith(_READ) and of_models.search(line)]
    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        yield from family.samples


def _of_version(key: Key, samples: Sequence[Sample]) -> dict[str, Any]:
    def total(name: str, **labels: str) -> float:
        return sum(
            sample.value
            for sample in samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def stage_ns(names: tuple[str, ...]) -> int:
        return sum(_ns(total(f"{STAGE_DURATION.name}_sum", stage=name)) for name in names)

    answered = round(total(REQUESTS.name))
    succeeded = round(total(REQUESTS.name, code=_SUCCESS))
    durations = {
        # Of what was answered; a request's whole time is counted without its code (foldserve_request_duration_seconds).
        "success": (succeeded, sum(map(stage_ns, _STAGES.values()))),
        "fail": (answered - succeeded, 0),
        **{
            name: (round(total(f"{STAGE_DURATION.name}_count", stage=stages[-1])), stage_ns(stages))
            for name, stages in _STAGES.items()
        },
        "cache_hit": (0, 0),
        "cache_miss": (0, 0),
    }
    return {
        "name": key[0],
        "version": key[1],
        "inference_count": round(total(f"{REQUEST_ROWS.name}_sum")),
        "execution_count": round(total(BATCHES.name)),
        "inference_stats": {name: {"count": count, "ns": ns} for name, (count, ns) in durations.items()},
        "batch_stats": [],
    }


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
