"""When an instance may take its next batch, where several instances share one device.

A GPU computes one batch at a time, however many instances feed it; the second one is there to copy its batch onto the
device while the first one's runs. If it took its batch the moment it is free, that batch would wait for the device,
closed, while more requests come that could have been in it. So it takes it as late as possible: when the running batch
is about to end, less the time of its own preparation. Simulated, ResNet-50 on a GPU at 70 % load: p99 5.2 ms instead of
7.2 (benchmarks/README.md).

On a CPU each instance has threads of its own, and nothing is gained by waiting.
"""

import threading
import time
from typing import Final

_PREPARATION: Final = 2
"""Of the time to gather a batch: it is copied once more, onto the device."""


class Gate:
    """The gate of instances that compute side by side: always open."""

    def wait(self) -> None:
        """Block until another batch may be begun."""

    def begin(self, run_ns: int, gather_ns: int) -> None:
        """A batch is run from now on, for about run_ns; putting one together takes about gather_ns."""

    def end(self) -> None:
        """It has ended."""


class DeviceGate(Gate):
    """The gate of the instances of one model that share a device. Thread-safe."""

    def __init__(self) -> None:
        self._lead_ns = 0
        self._changed = threading.Condition()
        self._running = 0
        self._ends_ns = 0

    def wait(self) -> None:
        """See Gate."""
        with self._changed:
            while self._running:
                left_ns = self._ends_ns - self._lead_ns - time.monotonic_ns()
                if left_ns <= 0:
                    return
                self._changed.wait(left_ns / 1e9)

    def begin(self, run_ns: int, gather_ns: int) -> None:
        """See Gate."""
        with self._changed:
            self._lead_ns = _PREPARATION * gather_ns
            now_ns = time.monotonic_ns()
            # One after the other: a batch that is begun while another runs ends after it.
            self._ends_ns = max(now_ns, self._ends_ns if self._running else 0) + run_ns
            self._running += 1

    def end(self) -> None:
        """See Gate."""
        with self._changed:
            self._running -= 1
            self._changed.notify_all()
