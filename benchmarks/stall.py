"""Who waits while one client sends or is sent much? The longest /v2/health/live beside each codec and size.

    make bench WHAT=stall                                  a few minutes
    make bench WHAT=stall ARGS='--sizes 1,8 --times 3'     a shorter run

One API server. A probe asks /v2/health/live on a connection of its own, again and again, while another client has a
large body answered with one number a row, or a small body answered at length: the probe's longest wait is what anybody
else would have had. Both paths of a request: the fast one, and the one through ASGI, to which a header sends it.
Each case comes --times times, each time behind a quiet second of the probe alone; printed are the median and the
highest of the longest waits.
"""

import argparse
import contextlib
import http.client
import io
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch

from benchmarks.soak import serving
from foldserve.models.export import export_model

MIB: Final = 2**20
FEATURES: Final = 16_384
"""Numbers of a row: of the input of `mean`, of the output of `repeat`."""
NUMBER: Final = 0.125
"""With its comma, six characters of JSON."""
JSON, RAW, NPY = "application/json", "application/octet-stream", "application/x-npy"
BYTES_OF_A_NUMBER: Final = {JSON: 6, RAW: 4, NPY: 4}
QUIET_S: Final = 1.0


class Mean(torch.nn.Module):
    """A long row to one number: the body is large."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1, keepdim=True)


class Repeat(torch.nn.Module):
    """A number to a long row: the answer is large."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.repeat(1, FEATURES)


class Case(NamedTuple):
    """One request, and the body it is sent with."""

    model: str
    kind: str
    mib: int
    long: bool
    body: bytes

    def ask(self, port: int) -> float:
        """Send it and read the answer. Returns: seconds."""
        headers = {"Content-Type": self.kind, **({"Trailer": "none"} if self.long else {})}
        began = time.perf_counter()
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=600)) as client:
            client.request("POST", f"/predict/{self.model}", self.body, headers)
            answer = client.getresponse()
            size = 0
            while chunk := answer.read(MIB):
                size += len(chunk)
        if answer.status != 200:
            raise SystemExit(f"{self.model}, {self.kind}, {self.mib} MiB: answered {answer.status}")
        return time.perf_counter() - began


class Probe:
    """Asks /v2/health/live all the time, from a process of its own: this one is busy sending."""

    def __init__(self, port: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_probe, args=(port, theirs), daemon=True)
        self._process.start()
        self.longest_s()  # it runs

    def longest_s(self) -> float:
        """The longest wait that has ended since the last call; the one under way is waited for."""
        self._pipe.send(None)
        longest_s: float = self._pipe.recv()
        return longest_s

    def end(self) -> None:
        """Stop asking."""
        self._process.terminate()
        self._process.join()


def _probe(port: int, pipe: Connection) -> None:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    longest_s = 0.0
    while True:
        asked_s = time.perf_counter()
        client.request("GET", "/v2/health/live")
        client.getresponse().read()
        longest_s = max(longest_s, time.perf_counter() - asked_s)
        if pipe.poll(0.001):  # a probe, not a flood
            pipe.recv()
            pipe.send(longest_s)
            longest_s = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="1,8,60", help="MiB of the large body or answer (default: 1,8,60)")
    parser.add_argument("--times", type=int, default=5, help="how often each case comes (default: 5)")
    args = parser.parse_args()
    sizes = [int(size) for size in args.sizes.split(",")]
    os.environ["FOLDSERVE_MAX_JSON_BYTES"] = "64MiB"  # as much as the other types may have
    with tempfile.TemporaryDirectory() as folder:
        export_model(Mean(), (torch.ones(2, FEATURES),), Path(folder), name="mean")
        export_model(Repeat(), (torch.ones(2, 1),), Path(folder), name="repeat")
        with serving(Path(folder), api_servers=1) as (_, port):
            probe = Probe(port)
            try:
                measure(probe, port, sizes, args.times)
            finally:
                probe.end()


def measure(probe: Probe, port: int, sizes: list[int], times: int) -> None:
    """Print the table."""
    print(f"{os.cpu_count()} cores; ms; median and highest of {times}")
    print(
        "| what is large | type | MiB | way | longest live beside it | longest live, quiet | the request itself |"
    )
    print("|---|---|---|---|---|---|---|")
    for case in cases(sizes):
        beside, quiet, itself = [], [], []
        for _ in range(times):
            probe.longest_s()
            time.sleep(QUIET_S)  # the measurement: a probe and nothing else
            quiet.append(probe.longest_s())
            itself.append(case.ask(port))
            beside.append(probe.longest_s())
        what = "body" if case.model == "mean" else "answer"
        way = "long" if case.long else "short"
        kind = case.kind.removeprefix("application/")
        figures = " | ".join(shown(seconds) for seconds in (beside, quiet, itself))
        print(f"| {what} | {kind} | {case.mib} | {way} | {figures} |", flush=True)


def shown(seconds: list[float]) -> str:
    """Median and highest, in ms."""
    return f"{statistics.median(seconds) * 1e3:.1f}, {max(seconds) * 1e3:.1f}"


def cases(sizes: list[int]) -> Iterator[Case]:
    for model, width in (("mean", FEATURES), ("repeat", 1)):
        for kind, number_bytes in BYTES_OF_A_NUMBER.items():
            for mib in sizes:
                rows = max(1, mib * MIB // (FEATURES * number_bytes))
                body = written(kind, np.full((rows, width), NUMBER, "<f4"))
                for long in (False, True):
                    yield Case(model, kind, mib, long, body)


def written(kind: str, rows: np.ndarray) -> bytes:
    if kind == JSON:
        return json.dumps({"inputs": rows.tolist()}, separators=(",", ":")).encode()
    if kind == NPY:
        file = io.BytesIO()
        np.save(file, rows)
        return file.getvalue()
    return rows.tobytes()


if __name__ == "__main__":
    main()
