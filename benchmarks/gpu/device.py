"""How busy the GPU is meanwhile, by NVIDIA's driver.

NVML tells in which part of its last moments (up to 1 s) anything ran on it: not how much of it was used.
"""

import statistics
import sys
import threading
from types import TracebackType
from typing import Any, Final

PERIOD_S: Final = 0.1


class Utilisation:
    """Asks again and again, in a thread of its own, from entering to leaving.

    Args:
        uuid: of the GPU; "" when there is none.
    Raises nothing: where the driver does not tell, there is no figure, and stderr says why.
    """

    def __init__(self, uuid: str) -> None:
        self._seen: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._nvml: Any = None
        if uuid:
            try:
                import pynvml  # here: without a GPU it is not needed

                pynvml.nvmlInit()
                self._nvml, self._handle = pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid)
            except Exception as error:  # what is measured beside it shall not be lost for this
                print(f"how busy {uuid} is cannot be told: {error!r}", file=sys.stderr, flush=True)

    @property
    def mean(self) -> float | None:
        """From 0 to 1; None when nothing was told."""
        return statistics.fmean(self._seen) if self._seen else None

    def __enter__(self) -> "Utilisation":
        if self._nvml is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._nvml is not None:
            self._thread.join()

    def _ask(self) -> None:
        while not self._over.wait(PERIOD_S):
            try:
                self._seen.append(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu / 100)
            except self._nvml.NVMLError:
                return  # a part of a GPU (MIG) has no such figure
