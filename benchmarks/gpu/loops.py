"""So many sessions in a loop without a server: rows/s, the time of one run, CPU, how busy the device is.

Each session is made and used by a thread of its own, as a worker's instances are: on a GPU what a session prepares
belongs to its thread, and two of them overlap one's copies with the other's run.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final

import numpy as np

from benchmarks.gpu.device import Utilisation

WARM_S: Final = 0.3
LEAST_RUNS: Final = 3

Step = Callable[[], object]
"""One run of one batch, copies to the device and back included."""
Steps = Callable[[int], Step]
"""Makes the step of a batch size; its rows lie where the session wants them."""


@dataclass(frozen=True)
class Looped:
    """What came of it. cpu_s: CPU seconds of this process per 1,000 rows. device: 0 to 1."""

    rows_s: float
    p50_ms: float
    p99_ms: float
    device: float | None
    cpu_s: float


@dataclass(frozen=True)
class _Order:
    batch: int
    seconds: float
    together: threading.Barrier
    result: "Future[list[float]]"


class Looper:
    """One session in its thread.

    Args:
        make: makes the session and returns its steps; called in the thread. What it raises, this raises.
    """

    def __init__(self, make: Callable[[], Steps]) -> None:
        self._orders: SimpleQueue[_Order | None] = SimpleQueue()
        self._made: Future[None] = Future()
        self._thread = threading.Thread(target=self._live, args=(make,), daemon=True)
        self._thread.start()
        self._made.result()

    def begin(self, batch: int, seconds: float, together: threading.Barrier) -> "Future[list[float]]":
        """Warm up, meet the others, run for so long; gives the seconds that each run took."""
        result: Future[list[float]] = Future()
        self._orders.put(_Order(batch, seconds, together, result))
        return result

    def end(self) -> None:
        """Let go of the session, in its own thread."""
        self._orders.put(None)
        self._thread.join()

    def _live(self, make: Callable[[], Steps]) -> None:
        try:
            steps = make()
        except BaseException as error:
            self._made.set_exception(error)
            return
        self._made.set_result(None)
        while order := self._orders.get():
            try:
                order.result.set_result(_timed(steps(order.batch), order))
            except BaseException as error:
                order.together.abort()
                order.result.set_exception(error)


def _timed(step: Step, order: _Order) -> list[float]:
    _for(step, WARM_S)
    order.together.wait()
    took = _for(step, order.seconds)
    order.together.wait()
    return took


def _for(step: Step, seconds: float) -> list[float]:
    took: list[float] = []
    clock = time.perf_counter
    begun_s = clock()
    end_s = begun_s + seconds
    while begun_s < end_s or len(took) < LEAST_RUNS:
        step()
        ended_s = clock()
        took.append(ended_s - begun_s)
        begun_s = ended_s
    return took


def loop(loopers: Sequence[Looper], batch: int, seconds: float, uuid: str = "") -> Looped:
    """Run all of them side by side at one batch size. uuid: of the GPU that is to be watched.

    Raises: what a session raised.
    """
    clocks: list[tuple[float, float]] = []  # at the start and at the end, read before anybody goes on
    device = Utilisation(uuid)
    together = threading.Barrier(
        len(loopers) + 1, lambda: clocks.append((time.perf_counter(), time.process_time()))
    )
    results = [looper.begin(batch, seconds, together) for looper in loopers]
    try:
        together.wait()
        with device:
            together.wait()
    except threading.BrokenBarrierError:
        errors = [result.exception() for result in results]
        # Of several the one that broke it: the others only found it broken.
        raise next(
            one for one in errors if one and not isinstance(one, threading.BrokenBarrierError)
        ) from None
    (begun_s, begun_cpu_s), (ended_s, ended_cpu_s) = clocks
    took_s, used_s = ended_s - begun_s, ended_cpu_s - begun_cpu_s
    runs = np.concatenate([result.result() for result in results]) * 1e3
    rows = len(runs) * batch
    p50_ms, p99_ms = np.percentile(runs, [50, 99])
    return Looped(rows / took_s, float(p50_ms), float(p99_ms), device.mean, used_s / rows * 1e3)
