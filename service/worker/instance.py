"""A thread for each instance: it loads the session, and serves with it later.

The same thread for both, because on a GPU what a session prepares while it is warmed, such as CUDA graphs, belongs
to the thread that did it (backends/base.py).
"""

import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import NoReturn

from foldserve.service.backends.base import DeviceLost, InsufficientMemory
from foldserve.service.worker.instance_loop import InstanceLoop

_log = logging.getLogger("foldserve.worker")

_BROKEN = 70
"""Exit code after a fault in an instance's loop (EX_SOFTWARE): the supervisor starts a new worker."""
_DEVICE_LOST = 69
"""Exit code when the device is lost (EX_UNAVAILABLE): likewise."""
_NO_ROOM = 75
"""Exit code when there is no room for what the worker before had (EX_TEMPFAIL): likewise, after longer and longer."""


class Instance:
    """One instance's thread, which begins with loading.

    Args:
        device: what its session runs on.
        make: loads the session and makes its loop; returns the loop and the session's notes.
    """

    def __init__(self, device: str, make: Callable[[], tuple[InstanceLoop, Sequence[str]]]) -> None:
        self._device = device
        self._loaded: Future[Sequence[str]] = Future()
        self._go: SimpleQueue[bool] = SimpleQueue()
        self._thread = threading.Thread(target=self._live, args=(make,), daemon=True)
        self._thread.start()

    def wait_loaded(self) -> Sequence[str]:
        """Wait until it is loaded. Returns: the session's notes. Raises: what loading raised."""
        return self._loaded.result()

    def serve(self) -> None:
        """Let it serve until its model is unloaded, or the process ends."""
        self._go.put(True)

    def drop(self) -> None:
        """Let it end without serving, and wait until it has: what its session held is free then, but for cycles."""
        self._go.put(False)
        self._thread.join()

    def wait_ended(self) -> None:
        """Wait until it has served for the last time."""
        self._thread.join()

    def _live(self, make: Callable[[], tuple[InstanceLoop, Sequence[str]]]) -> None:
        try:
            loop, notes = make()
        except BaseException as error:
            self._loaded.set_exception(error)
            return
        self._loaded.set_result(notes)
        if self._go.get():
            _run(loop, self._device)


def end_without_device(device: str, error: DeviceLost) -> NoReturn:
    """End at once: nothing can be answered here any more, and what this worker holds is run again by others."""
    _log.critical(
        "device %s is lost: %s; this worker ends and is started again, and what it held is run again; if this "
        "comes back, look for the device's own errors (nvidia-smi, the kernel's log)",
        *(device, error),
    )
    os._exit(_DEVICE_LOST)


def end_without_room(device: str, model: tuple[str, str], error: InsufficientMemory) -> NoReturn:
    """End, to be started again: the worker before had this model, so another user of the device may just have it."""
    _log.error(
        "model %s version %s was served on %s, which does not have enough memory for it now: %s; this worker "
        "ends and is started again",
        *(*model, device, error),
    )
    os._exit(_NO_ROOM)


def _run(loop: InstanceLoop, device: str) -> None:
    try:
        loop.run()
    except DeviceLost as error:
        end_without_device(device, error)
    except BaseException:
        # What the loop held must not stay held for ever: a death is what the API servers recover from.
        _log.critical("an instance's loop broke; the worker ends", exc_info=True)
        os._exit(_BROKEN)
