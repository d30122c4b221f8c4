"""The table: each class right, refused with the reason, or a fault of ours; then the counts."""

import warnings
from collections import Counter

import torch

from benchmarks.packages import language_and_sound, vision
from benchmarks.packages.install import install, use
from benchmarks.packages.trial import tried
from benchmarks.published import has_kernels

CLASSES = vision.CLASSES + language_and_sound.CLASSES
_REASON = 300  # characters of a reason in the table: what is wrong and where, rarely all of the mend


def report(names: list[str]) -> int:
    """Tries the classes whose name starts with one of names, or all. Returns the number of faults."""
    use(install())
    has_kernels()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    chosen = [c for c in CLASSES if not names or c.name.lower().startswith(tuple(n.lower() for n in names))]
    print("| class | dynamic | verdict | sizes compared | CPU s | largest difference, or the reason |")
    print("|---|---|---|---|---|---|")
    counts: Counter[str] = Counter()
    for published in chosen:
        verdict = tried(published)
        counts[verdict.kind] += 1
        dims = [label for axes in published.axes.values() for label in axes.values()]
        dynamic = ", ".join(["rows", *dict.fromkeys(dims)])
        detail = " ".join(verdict.detail.split()).replace("|", "\\|")[:_REASON]
        sizes = f"{verdict.compared} of {len(published.sizes)}"
        measured = f"{verdict.kind} | {sizes} | {verdict.cpu_s:.0f} | {detail}"
        print(f"| {published.package} {published.name} | {dynamic} | {measured} |", flush=True)
    print(
        f"\n{len(chosen)} classes: {counts['right']} right, {counts['refused']} refused, {counts['fault']} faults."
    )
    return counts["fault"]
