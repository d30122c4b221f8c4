"""What a trickle of first requests waits for beside a backlog of bulk, with priority levels and without.

    make bench WHAT=priority                                      two minutes
    make bench WHAT=priority ARGS='--seconds 3 --rounds 1'        a short one

resnet_small on one thread, in batches of 8 rows at most. The trickle comes one request at a time, at random moments
(exponential gaps), whether or not the last was answered, and is timed from the moment at which it should have come.
Bulk is a process with so many connections that each send the next row when the last is answered: a backlog that never
ends.
Four cases in turn, each --rounds times; medians of the rounds:

    alone            the trickle, and nothing else
    bulk alone       the backlog, and nothing else
    in one queue     both, all of one level
    two levels       both; the trickle has X-Priority 1, the backlog 2, which is the last level and so bulk
"""

import argparse
import asyncio
import multiprocessing
import os
import random
import statistics
import tempfile
import time
import urllib.request
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from benchmarks.soak import serving
from foldserve.models.export import export_model
from foldserve.models.registry import resolve

MODEL: Final = "resnet_small"
CONFIG: Final = (
    "max_batch_size: 8\nbatch_buckets: [1, 2, 4, 8]\nsession: {threads: 1}\n"
    "queue: {priority_levels: 2, priority_age_ms: 1000}\n"
)
SETTLE_S: Final = 0.5
"""Of bulk before anything is measured: its backlog is there."""


class Case(NamedTuple):
    """title: in the table. trickle, bulk: the level that each asks for; 0 for none at all."""

    title: str
    trickle: int
    bulk: int


CASES: Final = (
    Case("alone", 1, 0),
    Case("bulk alone", 0, 2),
    Case("in one queue", 1, 1),
    Case("two levels", 1, 2),
)


class Measured(NamedTuple):
    """One round of a case. Seconds; rows of bulk, and of padding, a second."""

    p50_s: float
    p99_s: float
    bulk_rows_s: float
    padding_rows_s: float


class Sender:
    """One kept connection that sends the same request again and again."""

    def __init__(self, port: int, rows: int, width: tuple[int, ...], level: int) -> None:
        self._port = port
        body = np.zeros((rows, *width), np.float32).tobytes()
        head = f"POST /predict/{MODEL} HTTP/1.1\r\nhost: x\r\ncontent-type: application/octet-stream\r\n"
        self._request = f"{head}x-priority: {level}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    async def ask(self) -> None:
        """Send it and read the answer."""
        self._writer.write(self._request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        answer = await self._reader.readexactly(length)
        if b" 200 " not in head[:15]:
            raise SystemExit(f"answered {head[:15]!r}: {answer!r}")


def send_bulk(port: int, width: tuple[int, ...], level: int, connections: int, pipe: Connection) -> None:
    """A process of its own: keep the backlog until told to end; tell how many were answered whenever asked."""

    async def run() -> None:
        answered = 0

        async def keep() -> None:
            nonlocal answered
            sender = Sender(port, 1, width, level)
            await sender.open()
            while True:
                await sender.ask()
                answered += 1

        ended = asyncio.get_running_loop().create_future()

        def tell() -> None:
            if pipe.recv():
                pipe.send(answered)
            else:
                ended.set_result(None)

        asyncio.get_running_loop().add_reader(pipe.fileno(), tell)
        keeping = [asyncio.create_task(keep()) for _ in range(connections)]
        done, _ = await asyncio.wait([ended, *keeping], return_when=asyncio.FIRST_COMPLETED)
        for one in done:
            one.result()  # raises what ended a connection

    asyncio.run(run())


async def trickle(port: int, width: tuple[int, ...], args: argparse.Namespace, level: int) -> list[float]:
    """Seconds of each request."""
    chosen = random.Random(1)
    free: list[Sender] = []
    took_s: list[float] = []

    async def one(due_s: float) -> None:
        sender = free.pop() if free else Sender(port, args.rows, width, level)
        if not hasattr(sender, "_writer"):
            await sender.open()
        await sender.ask()
        took_s.append(time.perf_counter() - due_s)
        free.append(sender)

    began_s = due_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        while due_s < began_s + args.seconds:
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            group.create_task(one(due_s))
            due_s += chosen.expovariate(args.rate)
    return took_s


def padding_rows(port: int) -> float:
    """Since the server started."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("foldserve_padding_rows_total{"))


def measure(port: int, width: tuple[int, ...], args: argparse.Namespace, case: Case) -> Measured:
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    told = (port, width, case.bulk, args.connections, theirs)
    bulk = context.Process(target=send_bulk, args=told, daemon=True)

    def answered() -> int:
        pipe.send(True)
        count: int = pipe.recv()
        return count

    before = 0
    if case.bulk:
        bulk.start()
        while answered() < args.connections:  # it is under way
            time.sleep(SETTLE_S)
        before = answered()
    padding, began_s = padding_rows(port), time.perf_counter()
    took_s = [0.0, 0.0]
    if case.trickle:
        took_s = asyncio.run(trickle(port, width, args, case.trickle))
    else:
        time.sleep(args.seconds)
    seconds = time.perf_counter() - began_s
    rows = 0
    if case.bulk:
        rows = answered() - before
        pipe.send(False)
        bulk.join()
    p50_s, p99_s = np.percentile(took_s, [50, 99])
    return Measured(p50_s, p99_s, rows / seconds, (padding_rows(port) - padding) / seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="of each case and round (default: 8)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each case comes (default: 3)")
    parser.add_argument("--rate", type=float, default=20.0, help="requests/s of the trickle (default: 20)")
    parser.add_argument("--rows", type=int, default=3, help="of a request of the trickle (default: 3)")
    parser.add_argument("--connections", type=int, default=256, help="of bulk, a row each (default: 256)")
    args = parser.parse_args()
    target = resolve(MODEL)
    width = tuple(target.example_inputs[0].shape[1:])
    found: dict[Case, list[Measured]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory() as folder:
        export_model(target.module, target.example_inputs, Path(folder), name=MODEL)
        (Path(folder) / MODEL / "config.yaml").write_text(CONFIG)
        with serving(Path(folder), api_servers=1) as (_, port):
            for _ in range(args.rounds):
                for case in CASES:
                    found[case].append(measure(port, width, args, case))
    shape = f"the trickle {args.rate:g} requests/s of {args.rows} rows, bulk {args.connections} connections"
    print(f"{os.cpu_count()} cores; medians of {args.rounds} rounds of {args.seconds:g} s; {shape}")
    print("| | trickle, p50 ms | p99 ms | bulk, rows/s | rows of padding a second |")
    print("|---|---|---|---|---|")
    for case, rounds in found.items():
        p50_s, p99_s, rows_s, padding_s = (statistics.median(values) for values in zip(*rounds, strict=True))
        waits = f"{p50_s * 1e3:.1f} | {p99_s * 1e3:.1f}" if case.trickle else " | "
        print(f"| {case.title} | {waits} | {rows_s:.0f} | {padding_s:.1f} |")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
