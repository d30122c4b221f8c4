"""A program: copies what the server's processes wrote into pipes to the real stdout and stderr, where it may wait.

    python pump.py PARENT PAUSE_S FROM=TO ...      stdin: open for as long as the server runs

Whoever reads the log may stop reading, its disk may be full: then this process waits or counts what is lost, and
nobody else notices. It ends when stdin does, after what stands in the pipes is written; and one second after its
parent, should it still be waiting for a reader. Run by file, in isolated mode: it needs the standard library alone,
and is there before anything else of the server.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import threading
import time

_CHUNK_BYTES = 65_536
_STDIN = 0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LAST_WORDS_S = 1
"""How long it may go on without its parent."""


def main(parent: int, pause_s: float, *ways: str) -> None:
    """Copy until stdin ends."""
    signal.signal(signal.SIGUSR1, lambda number, frame: signal.alarm(_LAST_WORDS_S))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1)
    if os.getppid() != parent:  # it died before the call
        signal.alarm(_LAST_WORDS_S)
    time.sleep(pause_s)  # the one before ended at once: starting ever again must not spin
    threads = [threading.Thread(target=copy, args=[*map(int, way.split("="))], daemon=True) for way in ways]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def copy(source: int, target: int, end: int = _STDIN) -> None:
    """Copy from one descriptor to another until `end` is at its end and `source` is empty, or has no writer."""
    os.set_blocking(source, False)
    lost = 0
    why = ""
    waiting = select.poll()  # not select.select, which takes no descriptor above 1023
    for fd in (source, end):
        waiting.register(fd, select.POLLIN)
    while True:
        ready = {fd for fd, _ in waiting.poll()}
        try:
            data = os.read(source, _CHUNK_BYTES)
        except BlockingIOError:
            if end in ready:
                return
            continue
        if not data:
            return
        if lost:
            note = f"{lost} lines are missing here: {why}\n".encode()
            if not write_all(target, note)[0]:
                lost = 0
        left, reason = write_all(target, data)
        if left:
            lost, why = lost + left.count(b"\n"), reason


def write_all(target: int, data: bytes) -> tuple[bytes, str]:
    """Write everything, however long it takes. Returns: what could not be written, and why."""
    while data:
        try:
            data = data[os.write(target, data) :]
        except BlockingIOError:  # somebody else who has this file open made it so
            room = select.poll()
            room.register(target, select.POLLOUT)
            room.poll()
        except OSError as error:
            return data, os.strerror(error.errno or 0)
    return b"", ""


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(int(sys.argv[1]), float(sys.argv[2]), *sys.argv[3:])
