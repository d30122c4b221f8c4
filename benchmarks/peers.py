"""foldserve beside other projects' servers: mosec, MLServer, BentoML, Ray Serve. In one run with the bare ceiling.

    python -m benchmarks.peers                     all of them; makes their environments under build/peers at first
    python -m benchmarks.peers --peers mosec       one of them; further options as in benchmarks.serve

One worker each, ONNX Runtime on one thread, batches of up to 32, the window in the two sizes that may be best for
it, JSON or its most efficient binary body, answers checked, load by wrk as in benchmarks.serve.
"""

import sys
from collections.abc import Sequence

from benchmarks import serve
from benchmarks.serving.peers import FAMILIES
from benchmarks.serving.servers import BARE, FOLDSERVE


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not any(word.startswith("--peers") for word in given):
        given += ["--peers", ",".join(FAMILIES)]
    return serve.main(["--no-limits", *given], (BARE, *FOLDSERVE))


if __name__ == "__main__":
    sys.exit(main())
