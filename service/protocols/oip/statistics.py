"""The statistics extension: what was counted of a model since the start, as counts and nanoseconds.

Made of the cells that /metrics has (metrics/counts.py), so that the two cannot differ, and both are exact over all
processes. Cumulative: a client samples twice and divides.
"""

from typing import Any, Final

from foldserve.service.metrics.counts import ModelCounts

_STAGES: Final = {
    "queue": ("queue",),
    "compute_input": ("decode", "gather"),
    "compute_infer": ("run",),
    "compute_output": ("scatter", "encode"),
}
"""Ours for each of Triton's."""


def statistics(counted: ModelCounts) -> dict[str, Any]:
    """An entry of `model_stats`."""

    def stage_ns(names: tuple[str, ...]) -> int:
        return sum(_ns(counted.stages[name][1]) for name in names)

    answered, succeeded = round(counted.answered), round(counted.succeeded)
    durations = {
        # Of what was answered; a request's whole time is counted without its code (foldserve_request_duration_seconds).
        "success": (succeeded, sum(map(stage_ns, _STAGES.values()))),
        "fail": (answered - succeeded, 0),
        **{
            name: (round(counted.stages[stages[-1]][0]), stage_ns(stages)) for name, stages in _STAGES.items()
        },
        "cache_hit": (0, 0),
        "cache_miss": (0, 0),
    }
    return {
        "name": counted.model,
        "version": counted.version,
        "inference_count": round(counted.rows),
        "execution_count": round(counted.batches),
        "inference_stats": {name: {"count": count, "ns": ns} for name, (count, ns) in durations.items()},
        "batch_stats": [],
    }


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
