"""`foldserve_device_*`: what the GPUs hold and how busy they are, read from NVIDIA's driver (NVML) at each scrape.

The figures are of the whole GPU, whoever uses it. A GPU is found by its UUID: NVML counts all GPUs of the machine,
CUDA those that CUDA_VISIBLE_DEVICES leaves, possibly in another order.

The driver is asked in a thread of its own, because it may take seconds to load where no persistence daemon keeps it,
and hang where the hardware does. A scrape waits for it WAIT_S and then goes without. Without NVML there are no such
metrics and one line in the log; on a server without GPUs nothing is even tried.
"""

import logging
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family

_log = logging.getLogger("foldserve.device_metrics")

DEVICE_METRICS: Final = {
    "foldserve_device_memory_used_bytes": "Memory of the GPU in use, by any process or the driver itself.",
    "foldserve_device_memory_total_bytes": "Memory that the GPU has.",
    "foldserve_device_utilization_ratio": "Part of the last moment (NVML: up to 1 s) in which the GPU ran anything.",
}
"""Names and help texts; each has the label `device`."""

WAIT_S: Final = 0.010
"""How long a scrape waits for the driver; ordinarily it answers in well under a millisecond."""


@dataclass(frozen=True)
class DeviceUse:
    """What NVML tells of one GPU. utilization: 0 to 1; None where it is not told, as for a part of a GPU (MIG)."""

    memory_used_bytes: int
    memory_total_bytes: int
    utilization: float | None


class DeviceMetrics:
    """The families of one API server. Thread-safe: scrapes may overlap.

    Args:
        uuids: device ("cuda:0") -> the GPU's UUID ("GPU-..."); empty when there is no GPU.
    """

    def __init__(self, uuids: Mapping[str, str]) -> None:
        self._uuids = dict(uuids)
        self._told: set[str] = set()
        self._opened = False
        self._nvml: Any = None
        self._handles: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._reading: Future[dict[str, DeviceUse]] | None = None
        if self._uuids:
            self._thread = ThreadPoolExecutor(1, "nvml")
            # Now: the driver may take its time to load, and the first scrape need not wait for that.
            self._reading = self._thread.submit(self._read)

    def families(self) -> Iterable[Family]:
        """The families of those devices that the driver reports now. Raises nothing; returns within WAIT_S or so."""
        if not self._uuids:
            return []
        uses = self._latest()
        families = [
            GaugeMetricFamily(name, text, labels=("device",)) for name, text in DEVICE_METRICS.items()
        ]
        for device, use in uses.items():
            values = (use.memory_used_bytes, use.memory_total_bytes, use.utilization)
            for family, value in zip(families, values, strict=True):
                if value is not None:
                    family.add_metric((device,), value)
        return [family for family in families if family.samples]

    def _latest(self) -> dict[str, DeviceUse]:
        with self._lock:
            if self._reading is None or self._reading.done():
                self._reading = self._thread.submit(self._read)
            reading = self._reading
        try:
            return reading.result(WAIT_S)
        except TimeoutError:
            self._report(
                f"NVML did not answer in {WAIT_S:g} s; scrapes go without device metrics until it does"
            )
        return {}

    # -- in the thread; whatever the driver and its binding raise there, no scrape fails for it

    def _read(self) -> dict[str, DeviceUse]:
        if not self._opened:
            self._opened = True
            try:
                self._open()
            except Exception as error:
                self._report("there are no device metrics: NVML cannot be used", error)
        found = ((device, self._use(device, handle)) for device, handle in self._handles.items())
        return {device: use for device, use in found if use is not None}

    def _open(self) -> None:
        """Once per process; when it fails there are no handles, and so nothing is read."""
        import pynvml as nvml  # here: a server without GPUs does not need it

        self._nvml = nvml
        nvml.nvmlInit()
        for device, uuid in self._uuids.items():
            try:
                self._handles[device] = nvml.nvmlDeviceGetHandleByUUID(uuid)
            except Exception as error:
                self._report(f"there are no metrics of {device}: NVML does not find {uuid}", error)

    def _use(self, device: str, handle: Any) -> DeviceUse | None:
        nvml = self._nvml
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        except Exception as error:
            self._report(f"NVML does not report the memory of {device}", error)
            return None
        utilization = None
        try:
            utilization = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        except Exception as error:
            self._report(f"NVML does not report the utilisation of {device}", error)
        return DeviceUse(memory.used, memory.total, utilization)

    def _report(self, what: str, error: Exception | None = None) -> None:
        """Log it, once."""
        if what not in self._told:
            self._told.add(what)
            _log.warning("%s%s", what, "" if error is None else f": {type(error).__name__}: {error}")
