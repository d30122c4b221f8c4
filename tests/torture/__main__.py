"""Does anything that a client, a file or a dying process does make the server wrong, deaf or dead? Minutes of trying.

    make torture                                             ten minutes, on the compiled server
    make torture ARGS='--seconds 60 --parts unharmed'        some of it; `--seed 7` for another course
    python -m tests.torture --seconds 60                     on the server as it lies here, not compiled

Two API servers, two workers, five models, all protocols. Prints one line of counts for each part; ends with 1 when a
bound is broken: nothing wrong, swapped or hung, no 5xx from input, no death that nobody caused, and /v2/health/live
never later than 100 ms while nothing is killed. docs/reliability.md says what else is promised, and has the counts of
the last long run.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from foldserve.service.engine import dispatcher
from tests.torture import hostile, models, trouble
from tests.torture.counts import NEVER, Counts
from tests.torture.fuzz_codecs import fuzz_codecs
from tests.torture.greedy.runner import all_kinds
from tests.torture.parts import Budget, ended, fuzzed, fuzzed_bodies, harmed, unharmed

_TOGETHER = 3
"""Hostile folders in one repository: few enough to see which it was."""


def _hostile(folder: Path, names: list[str]) -> Counts:
    counts = Counts("hostile repositories")
    for first in range(0, len(names), _TOGETHER):
        hostile.beside(folder / str(first), names[first : first + _TOGETHER], counts)
    return counts


def _parts(seed: int, seconds: float) -> dict[str, Callable[[Path], Counts]]:
    """By name, each with its share of the time. The hostile repositories take what they take."""
    return {
        "codecs": lambda folder: fuzz_codecs(seed, seconds=seconds * 0.05),
        "wire": lambda folder: fuzzed(folder, seed, models.MODELS, seconds=seconds * 0.05),
        "bodies": lambda folder: fuzzed_bodies(folder, seed, models.MODELS, seconds=seconds * 0.1),
        "unharmed": lambda folder: unharmed(folder, Budget(seconds * 0.3), seed, all_kinds()),
        "workers": lambda folder: harmed(
            folder,
            Budget(seconds * 0.1),
            seed,
            trouble.WORKERS,
            part="workers killed",
            zero=(*NEVER, "broken", "unready", "turned_away", "expired"),
        ),
        "stops": lambda folder: harmed(
            folder,
            Budget(seconds * 0.05),
            seed,
            trouble.STOPS,
            part="processes stopped",
            zero=(*NEVER, "broken", "unready", "crashed", "expired"),
        ),
        "long": lambda folder: harmed(
            folder,
            Budget(seconds * 0.08),
            seed,
            trouble.LONG_STOPS,
            part="stopped for longer than a run may take",
            options=("--run-limit", "3"),
        ),
        "everything": lambda folder: harmed(
            folder, Budget(seconds * 0.12), seed, trouble.EVERYTHING, part="everything killed and stopped"
        ),
        "ended": lambda folder: ended(
            folder, max(1, int(seconds / 60)), seed, ("linear", "digits", "pair", "colours")
        ),
        "hostile": lambda folder: _hostile(folder, list(hostile.cases())),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = list(_parts(0, 0))
    parser.add_argument(
        "--seconds", type=float, default=600.0, help="for all parts together, about (default: 600)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of all that is drawn by luck (default: 1)")
    parser.add_argument("--parts", default=",".join(names), help=f"some of {', '.join(names)} (default: all)")
    args = parser.parse_args()
    chosen = args.parts.split(",")
    if unknown := [name for name in chosen if name not in names]:
        parser.error(f"--parts has {', '.join(unknown)}; expected some of {', '.join(names)}")
    module = Path(dispatcher.__file__)  # one of those that setup.py compiles
    kind = "compiled" if module.suffix == ".so" else "not compiled"
    print(f"foldserve of {module.parent} ({kind}), seed {args.seed}", flush=True)
    began_s, broken = time.monotonic(), []
    for name, part in _parts(args.seed, args.seconds).items():
        if name not in chosen:
            continue
        with tempfile.TemporaryDirectory() as folder:
            counts = part(Path(folder))
        print(counts.line(), flush=True)
        broken += counts.broken_bounds()
        for example in counts.shown():
            print(f"    {example}", flush=True)
    verdict = f"BROKEN: {'; '.join(broken)}" if broken else "every bound holds"
    print(f"{time.monotonic() - began_s:.0f} s; {verdict}")
    return 1 if broken else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as the tests: many processes, few cores
    sys.exit(main())
