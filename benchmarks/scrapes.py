"""How long /v2/health/live waits while many models are scraped without a pause: what a scrape costs everybody else.

    make bench WHAT=scrapes ARGS='--models 100 --seconds 10'

Copies of one small network, one API server. Probes are sent one after the other on a connection of their own, in turn
without and with somebody who scrapes; the median, the 99th percentile and the longest of each are printed. The scraped
bodies are read and dropped. On two cores the scraper, the exporter and the server share them.
"""

import argparse
import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from foldserve.models.export import export_model
from foldserve.models.registry import resolve

START_LIMIT_S = 120.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each part [default %(default)g]")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), args.models) as port:
        print(f"{args.models} models; milliseconds of a probe: median, 99th percentile, longest")
        for scraped in (False, True, False, True):
            stop = threading.Event()
            scrapes: list[float] = []
            scraper = threading.Thread(target=scrape, args=(port, stop, scrapes))
            if scraped:
                scraper.start()
            found = probes(port, args.seconds)
            stop.set()
            if scraped:
                scraper.join()
            figures = ", ".join(f"{found[int(part * (len(found) - 1))]:.2f}" for part in (0.5, 0.99, 1))
            more = f"; {len(scrapes)} scrapes of {sum(scrapes) / len(scrapes):.0f} ms" if scraped else ""
            print(f"{'scraped' if scraped else 'quiet  '}: {figures}{more}", flush=True)
    return 0


def probes(port: int, seconds: float) -> list[float]:
    """Milliseconds of each probe, ascending."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    found = []
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        started_s = time.perf_counter()
        connection.request("GET", "/v2/health/live")
        connection.getresponse().read()
        found.append((time.perf_counter() - started_s) * 1000)
        time.sleep(0.002)  # between two probes: they are to see the server's load, not to be it
    return sorted(found)


def scrape(port: int, stop: threading.Event, took_ms: list[float]) -> None:
    """Scrape until told to stop."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        while not stop.is_set():
            started_s = time.perf_counter()
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            while answer.read(1 << 16):
                pass
            took_ms.append((time.perf_counter() - started_s) * 1000)


@contextlib.contextmanager
def serving(folder: Path, models: int) -> Iterator[int]:
    """A server of so many copies of a small network. Yields its port."""
    target = resolve("mlp")
    export_model(target.module, target.example_inputs, folder, name="m0")
    manifest = (folder / "m0/1/manifest.json").read_text()
    for number in range(1, models):
        shutil.copytree(folder / "m0", folder / f"m{number}")
        (folder / f"m{number}/1/manifest.json").write_text(
            manifest.replace('"name": "m0"', f'"name": "m{number}"')
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = [Path(sysconfig.get_path("scripts")) / "foldserve", "serve", str(folder), "--port", str(port)]
    with open(os.devnull, "wb") as null:
        server = subprocess.Popen(
            [*command, "--api-servers", "1", "--device", "cpu"], stdout=null, stderr=null
        )
    try:
        wait_ready(port)
        yield port
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def wait_ready(port: int) -> None:
    """Wait until every model is served."""
    until_s = time.monotonic() + START_LIMIT_S
    while time.monotonic() < until_s:
        with (
            contextlib.suppress(OSError),
            contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as asking,
        ):
            asking.request("GET", "/health")
            if asking.getresponse().status == 200:
                return
        time.sleep(0.1)  # between two questions
    sys.exit("the server was not ready in time")


if __name__ == "__main__":
    sys.exit(main())
