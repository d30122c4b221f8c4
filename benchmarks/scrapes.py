"""How long /v2/health/live waits while many models are scraped without a pause: what a scrape costs everybody else.

    python -m benchmarks.scrapes [--models 100] [--seconds 10] [--scrapers 2]

Prints the median, the 99th percentile and the longest of the probes, with and without scrapers, in one run of one server
with one API server. The probes are sent one after the other on a connection of their own.
"""

import argparse
import http.client
import json
import shutil
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.serving.servers import ServedHere, started

_PROBE = "/v2/health/live"


def probes(port: int, seconds: float) -> list[float]:
    """Milliseconds of each probe."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    found = []
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        started_s = time.perf_counter()
        connection.request("GET", _PROBE)
        connection.getresponse().read()
        found.append((time.perf_counter() - started_s) * 1000)
        time.sleep(0.001)  # a probe's pause: the server is not to be kept busy by them
    return sorted(found)
