"""What helps the supervisor's children and holds nothing of a request: started again whenever it ends."""

import logging
import selectors
import time
from typing import Protocol

from foldserve.service.server.children import HINTS, LONGEST_PAUSE_S, RESTART_PAUSE_S

_log = logging.getLogger("foldserve.supervisor")


class Helper(Protocol):
    """What serves the others and holds nothing of a request, a process that helps them most of all: all that is to be
    done is to start it again."""

    def fileno(self) -> int:
        """Readable when it has ended; maybe another descriptor after each renew()."""

    def renew(self) -> None:
        """Start it again, or see to what has ended.

        Raises: OSError when that cannot be at this moment; it is tried again then.
        """


class Helpers:
    """Used by the supervisor's thread alone; its selector learns of each helper's end."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._renewals: list[tuple[float, Helper, float]] = []
        """When a helper is tried again, and how long it waits after that, should it fail again."""

    def watch(self, helper: Helper) -> None:
        """Have a helper started again whenever it ends."""
        self._selector.register(helper.fileno(), selectors.EVENT_READ, lambda: self._renew(helper))

    def due_s(self) -> list[float]:
        """When a helper is to be tried again, by time.monotonic()."""
        return [at_s for at_s, _, _ in self._renewals]

    def renew_due(self, now: float) -> None:
        """Try whoever is due."""
        due = [renewal for renewal in self._renewals if renewal[0] <= now]
        self._renewals = [renewal for renewal in self._renewals if renewal[0] > now]
        for _, helper, pause_s in due:
            self._try_to_renew(helper, pause_s)

    def _renew(self, helper: Helper) -> None:
        self._selector.unregister(helper.fileno())
        self._try_to_renew(helper, RESTART_PAUSE_S)

    def _try_to_renew(self, helper: Helper, pause_s: float) -> None:
        """Start a helper again, or plan to, as a child that cannot be started."""
        try:
            helper.renew()
        except OSError as error:
            hint = HINTS.get(error.errno or 0, "")
            name = type(helper).__name__
            _log.error("%s cannot be started again: %s%s; again in %g s", name, error, hint, pause_s)
            then_s = min(2 * pause_s, LONGEST_PAUSE_S)
            self._renewals.append((time.monotonic() + pause_s, helper, then_s))
            return
        self.watch(helper)
