"""What the tests of deploy/ share: where the files lie, and what a PromQL expression mentions."""

import re
import tomllib
from pathlib import Path

from foldserve.service.metrics.catalog import EXPOSED
from foldserve.service.metrics.device import DEVICE_METRICS
from foldserve.service.metrics.process import PROCESS_METRICS
from foldserve.service.metrics.store import Metric

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"

# A recorded name (model:foldserve_...) is no metric of the server: what precedes the name excludes it.
_SELECTOR = re.compile(r"(?<![\w:])((?:foldserve|process)_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")


def version_of_foldserve() -> str:
    """The version in pyproject.toml."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def series_names() -> dict[str, tuple[str, ...]]:
    """Every series name that /metrics can hold, with the labels it carries."""
    names: dict[str, tuple[str, ...]] = dict.fromkeys(PROCESS_METRICS, ())
    names |= dict.fromkeys(DEVICE_METRICS, ("device",))
    for metric in EXPOSED:
        names.update(_names_of(metric))
    return names


def _names_of(metric: Metric) -> dict[str, tuple[str, ...]]:
    if metric.kind != "histogram":
        return {metric.name: metric.labels}
    return {
        f"{metric.name}_sum": metric.labels,
        f"{metric.name}_count": metric.labels,
        f"{metric.name}_bucket": (*metric.labels, "le"),
    }


def unknown_in(expression: str) -> list[str]:
    """Metric names and labels of a PromQL expression that foldserve does not expose."""
    known = series_names()
    faults = []
    for name, matchers in _SELECTOR.findall(expression):
        if name not in known:
            faults.append(name)
            continue
        labels = {*known[name], "job", "instance"}  # these two are Prometheus' own
        faults += [f"{name}{{{label}}}" for label in _MATCHER.findall(matchers) if label not in labels]
    return faults
