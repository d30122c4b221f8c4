"""Does the server's memory stay flat? Many requests of mixed sizes, and the resident memory after every tenth.

    make soak                                1,000,000 requests (about 5 minutes on two cores)
    make soak ARGS='--requests 20000'        a short try

Prints the resident memory of the whole server (proportional: shared pages counted once) after each tenth, and
ends with 1 when the last tenth's is more than 2 % off the second tenth's, or an answer was wrong.
"""

import argparse
import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson

from foldserve.models.export import export_model
from foldserve.models.registry import resolve

MODEL = "mlp"
FEATURES = 10
TENTHS = 10
TOLERANCE = 0.02
START_LIMIT_S = 60.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=1_000_000, help="how many (default: 1000000)")
    parser.add_argument("--connections", type=int, default=32, help="at a time (default: 32)")
    parser.add_argument("--api-servers", type=int, default=1, help="processes that speak HTTP (default: 1)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        target = resolve(MODEL)
        export_model(target.module, target.example_inputs, Path(folder), name=MODEL)
        # All connections may send their largest request at once: none is to be refused.
        (Path(folder) / MODEL / "config.yaml").write_text("queue: {max_rows: 100000}\n")
        with serving(Path(folder), args.api_servers) as (pid, port):
            return asyncio.run(soak(pid, port, args.requests, args.connections))


@contextlib.contextmanager
def serving(repository: Path, api_servers: int) -> Iterator[tuple[int, int]]:
    """A server of the repository: its pid and port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = str(Path(sysconfig.get_path("scripts")) / "foldserve")
    options = ("--port", str(port), "--device", "cpu", "--api-servers", str(api_servers))
    server = subprocess.Popen([program, "serve", str(repository), *options])
    try:
        until_s = time.monotonic() + START_LIMIT_S
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready").close()
                break
            if server.poll() is not None or time.monotonic() > until_s:
                raise SystemExit("the server did not become ready; its output is above")
            time.sleep(0.1)
        yield server.pid, port
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


async def soak(pid: int, port: int, requests: int, connections: int) -> int:
    """Send them in tenths; print the memory after each. Returns the exit code."""
    resident: list[int] = []
    faults = 0
    print(f"{'requests':>10} {'MiB':>9} {'requests/s':>11}")
    for tenth in range(TENTHS):
        began = time.monotonic()
        share = requests // TENTHS // connections
        faults += sum(
            await asyncio.gather(
                *(ask(port, share, seed=tenth * connections + i) for i in range(connections))
            )
        )
        seconds = time.monotonic() - began
        resident.append(sum(proportional_bytes(one) for one in tree(pid)))
        done = (tenth + 1) * share * connections
        print(f"{done:>10} {resident[-1] / 2**20:>9.1f} {share * connections / seconds:>11.0f}", flush=True)
    growth = resident[-1] / resident[1] - 1
    flat = abs(growth) <= TOLERANCE
    print(f"last tenth against the second: {growth:+.2%}; {faults} wrong answers")
    return 0 if flat and not faults else 1


async def ask(port: int, count: int, seed: int) -> int:
    """Ask on one connection; return how many answers were not 200 with as many rows as were sent."""
    chosen = random.Random(seed)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    wrong = 0
    for _ in range(count):
        # Mostly small, as in life; now and then large; sizes all over, in both encodings.
        rows = chosen.choice((1, 1, 1, 1, 2, 3, chosen.randint(4, 40), chosen.randint(1, 400)))
        x = np.full((rows, FEATURES), chosen.random(), np.float32)
        as_json = chosen.random() < 0.5
        body = orjson.dumps({"inputs": x}, option=orjson.OPT_SERIALIZE_NUMPY) if as_json else x.tobytes()
        kind = "application/json" if as_json else "application/octet-stream"
        writer.write(
            f"POST /predict/{MODEL} HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        answer = await reader.readexactly(length)
        if as_json:
            got = len(orjson.loads(answer).get("outputs", {}).get("y", ())) if b" 200 " in head[:15] else -1
        else:
            got = length // 20 if b" 200 " in head[:15] else -1
        wrong += got != rows
    writer.close()
    return wrong


def tree(pid: int) -> list[int]:
    """A process and all that come from it."""
    found, waiting = [], [pid]
    while waiting:
        found.append(one := waiting.pop())
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            waiting += map(int, children.read_text().split())
    return found


def proportional_bytes(pid: int) -> int:
    """Resident memory, shared pages divided by who shares them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
