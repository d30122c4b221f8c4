"""Is every wrong file caught? All networks of models/, all precisions, both files, every kind of fault.

    python -m tests.models.export.wrong
    python -m tests.models.export.wrong --networks mlp,unet --precisions bf16 --places 9

Each kind of fault is tried at the first and the last place where it fits and at others drawn between; in a large
network (a million parameters) at one that is drawn, another one in each file and precision. Prints what was missed and
the table of docs/folding.md; ends with 1 when a fault was missed. A run that was cut off goes on where it was.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from foldserve.models.export.precision.precision import PRECISIONS
from foldserve.models.registry import available
from tests.models.export.wrong.results import Results
from tests.models.export.wrong.trial import LARGE, Proved, Trial, Verdict, table


def main() -> int:
    args = _parser().parse_args()
    results = Results(args.results, f"{args.places} {args.large_places} {args.seed}")
    verdicts = [v for name in args.networks.split(",") for v in _of_network(name, args, results)]
    print(table(verdicts), table(verdicts, "network"), sep="\n\n")
    missed = [v for v in verdicts if v.what == "missed"]
    print(f"{len(missed)} of {len(verdicts)} faults missed")
    return 1 if missed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.models.export.wrong",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--networks", default=",".join(available()), help="some of them (default: all)")
    parser.add_argument("--precisions", default=",".join(PRECISIONS), help="some of them (default: all)")
    parser.add_argument("--places", type=int, default=3, help="of each kind of fault in a file (default: 3)")
    parser.add_argument("--large-places", type=int, default=1, help="in a large network (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="which places are drawn (default: 0)")
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("build", "wrong.jsonl"),
        help="what was tried before with the same code and places, and will be (default: build/wrong.jsonl)",
    )
    return parser


def _of_network(name: str, args: argparse.Namespace, results: Results) -> Iterator[Verdict]:
    proved: Proved | None = None
    for precision in args.precisions.split(","):
        if results.is_whole(name, precision):
            yield from results.of(name, precision)
            continue
        began_s, began_cpu_s = time.monotonic(), time.process_time()
        proved = proved or Proved(name)
        most = args.places if proved.parameters < LARGE else args.large_places
        with tempfile.TemporaryDirectory() as folder:
            trial = Trial(proved, precision, Path(folder), most, args.seed, results.of(name, precision))
            found = results.add(_both_files(trial), name, precision)
        missed = [v for v in found if v.what == "missed"]
        print(
            f"{name} {precision}: {len(found)} faults, {len(missed)} missed, {time.monotonic() - began_s:.0f} s, "
            f"{time.process_time() - began_cpu_s:.0f} s of the CPU",
            flush=True,
        )
        for verdict in missed:
            print(f"    missed: {verdict.kind} at {verdict.place} in {verdict.file}", flush=True)
        yield from found


def _both_files(trial: Trial) -> Iterator[Verdict]:
    yield from trial.torchscript()
    yield from trial.onnx()


if __name__ == "__main__":
    sys.exit(main())
