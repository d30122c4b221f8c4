"""When the second instance of a device takes its batch."""

import threading
import time

from foldserve.service.worker.device_gate import DeviceGate, Gate

SECOND_NS = 10**9


def test_gate_of_instances_with_threads_of_their_own_is_always_open() -> None:
    gate = Gate()
    gate.begin(3600 * SECOND_NS, 0)
    gate.wait()


def test_gate_is_open_while_nothing_runs() -> None:
    gate = DeviceGate()
    gate.wait()
    gate.begin(3600 * SECOND_NS, 0)
    gate.end()
    gate.wait()


def test_gate_opens_before_the_running_batch_ends_by_what_preparing_the_next_takes() -> None:
    gate = DeviceGate()
    began_ns = time.monotonic_ns()
    gate.begin(run_ns=SECOND_NS // 5, gather_ns=SECOND_NS // 20)
    gate.wait()
    waited_ns = time.monotonic_ns() - began_ns
    # A fifth of a second, less twice a twentieth: at least a tenth. Later only by how busy the machine is.
    assert waited_ns >= SECOND_NS // 10


def test_gate_opens_when_the_running_batch_ends_before_it_was_expected_to() -> None:
    gate = DeviceGate()
    gate.begin(3600 * SECOND_NS, 0)
    waiting = threading.Thread(target=gate.wait)
    waiting.start()
    gate.end()
    waiting.join()


def test_batch_behind_another_is_expected_to_end_after_it() -> None:
    gate = DeviceGate()
    began_ns = time.monotonic_ns()
    gate.begin(SECOND_NS // 10, 0)
    gate.begin(SECOND_NS // 10, 0)
    gate.wait()
    assert time.monotonic_ns() - began_ns >= SECOND_NS // 5
