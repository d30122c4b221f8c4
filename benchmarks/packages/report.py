"""The table: each class right, refused with the reason, or a fault of ours; then the counts.

Each class is tried in a process of its own: what one leaves behind costs the next one nothing.
"""

import multiprocessing
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from benchmarks.packages import language_and_sound, vision
from benchmarks.packages.install import install, use
from benchmarks.packages.published_class import PublishedClass
from benchmarks.packages.trial import Verdict, tried
from benchmarks.published import has_kernels

CLASSES = vision.CLASSES + language_and_sound.CLASSES
_REASON = 300  # characters of a reason in the table: what is wrong and where, rarely all of the mend


def report(names: list[str], jobs: int = 1) -> int:
    """Tries the classes whose name starts with one of names, or all; so many at once. Returns the number of faults."""
    packages = install()
    use(packages)
    starts = tuple(name.lower() for name in names)
    chosen = [index for index, c in enumerate(CLASSES) if not names or c.name.lower().startswith(starts)]
    print("| class | dynamic | verdict | sizes compared | CPU s | largest difference, or the reason |")
    print("|---|---|---|---|---|---|")
    counts: Counter[str] = Counter()
    with ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), _begin, (packages,), max_tasks_per_child=1
    ) as pool:
        for index, verdict in zip(chosen, pool.map(_tried, chosen), strict=True):
            counts[verdict.kind] += 1
            print(_row(CLASSES[index], verdict), flush=True)
    print(
        f"\n{len(chosen)} classes: {counts['right']} right, {counts['refused']} refused, {counts['fault']} faults."
    )
    return counts["fault"]


def _begin(packages: Path) -> None:
    use(packages)
    has_kernels()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


def _tried(index: int) -> Verdict:
    """By its number: classes are built by functions that cannot be sent to another process."""
    return tried(CLASSES[index])


def _row(published: PublishedClass, verdict: Verdict) -> str:
    dims = [label for axes in published.axes.values() for label in axes.values()]
    dynamic = ", ".join(["rows", *dict.fromkeys(dims)])
    detail = " ".join(verdict.detail.split()).replace("|", "\\|")[:_REASON]
    sizes = f"{verdict.compared} of {len(published.sizes)}"
    measured = f"{verdict.kind} | {sizes} | {verdict.cpu_s:.0f} | {detail}"
    return f"| {published.package} {published.name} | {dynamic} | {measured} |"
