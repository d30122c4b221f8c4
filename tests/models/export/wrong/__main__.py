"""Is every wrong file caught? All networks of models/, all precisions, both files, every kind of fault.

    python -m tests.models.export.wrong                          half an hour; most is the large networks
    python -m tests.models.export.wrong --networks mlp,unet --precisions bf16 --places 9

Prints what was missed and the table of docs/folding.md; ends with 1 when a fault was missed.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from models.export.precision import PRECISIONS
from models.registry import available
from tests.models.export.wrong.trial import Trial, Verdict, table


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.models.export.wrong",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--networks", default=",".join(available()), help="some of them (default: all)")
    parser.add_argument("--precisions", default=",".join(PRECISIONS), help="some of them (default: all)")
    parser.add_argument("--places", type=int, default=3, help="of each kind of fault in a file (default: 3)")
    args = parser.parse_args()
    verdicts: list[Verdict] = []
    for name in args.networks.split(","):
        for precision in args.precisions.split(","):
            began_s = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                trial = Trial(name, precision, Path(folder))
                found = [*trial.torchscript(args.places), *trial.onnx(args.places)]
            missed = [v for v in found if v.what == "missed"]
            print(
                f"{name} {precision}: {len(found)} faults, {len(missed)} missed, {time.monotonic() - began_s:.0f} s",
                flush=True,
            )
            for verdict in missed:
                print(f"    missed: {verdict.kind} at {verdict.place} in {verdict.file}", flush=True)
            verdicts += found
    print(table(verdicts), table(verdicts, "network"), sep="\n\n")
    missed = [v for v in verdicts if v.what == "missed"]
    print(f"{len(missed)} of {len(verdicts)} faults missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
