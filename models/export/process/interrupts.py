"""End an export at Ctrl-C, whatever is being done at that moment.

KeyboardInterrupt may come up in any line of any library. Some swallow it (a bare except around an optional import),
some make another error of it (a half-imported module lacks a name), and where it comes up in a callback or a destructor
Python prints it and goes on. So the signal is remembered, the next step of the export looks at it, and an error that
comes after it counts as the end that was asked for. Knows nothing of exports.
"""

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """Within the block, from the main thread: SIGINT raises KeyboardInterrupt and is remembered.

    came: whether one came. Nothing is set outside of the main thread, which alone gets signals, nor where the process
    was started with SIGINT ignored, as in the background of a script.
    """

    def __init__(self) -> None:
        self.came = False
        self._handler: Any = None
        self._hook = sys.unraisablehook

    def __enter__(self) -> "Interrupts":
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        if threading.current_thread() is threading.main_thread() and not ignored:
            self._handler = signal.signal(signal.SIGINT, self._on_signal)
            self._hook = sys.unraisablehook
            sys.unraisablehook = self._on_unraisable
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            sys.unraisablehook = self._hook

    def raise_if_came(self) -> None:
        """Raises: KeyboardInterrupt, when one came and was swallowed."""
        if self.came:
            raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        raise KeyboardInterrupt

    def _on_unraisable(self, unraisable: Any) -> None:
        # Printed otherwise as "Exception ignored in ...", and lost.
        if not self.came:
            self._hook(unraisable)
