"""How long /v2/health/live keeps somebody waiting: a prober in a process of its own, with a control.

    python -m tests.torture.stalls PORT PID...      one connection to each of these API servers, until stdin ends

On a busy machine a probe may be late because the prober, or the server, was not given a core. So beside the servers a
trivial process is asked, which waits for 2 ms and answers: what it took longer than that, the machine was busy for
everybody. And the kernel says how long the API server's own event loop stood ready without a core (schedstat). Of a
probe's time the larger of the two is taken off; the rest is what the server itself did to it. All of it is told.
"""

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.faults.support import client_ports
from tests.torture.counts import Counts
from tests.torture.wire import HOST

_ROOT: Final = Path(__file__).resolve().parents[2]
_PROBE: Final = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"
_EVERY_S: Final = 0.005
_ECHO_S: Final = 0.002
_ECHO_USUAL_S: Final = 0.004
"""What the control takes on a machine at rest, at most."""
_KEPT: Final = 100_000
"""Of the control: longer ago than any probe has been on its way."""
_CONNECT_TRIES: Final = 200
_ASK_S: Final = 60.0


def echo(connection: socket.socket) -> None:
    """The control: answers each byte after 2 ms."""
    with contextlib.suppress(OSError):
        while connection.recv(1):
            time.sleep(_ECHO_S)  # so that one question is always under way without using a core
            connection.sendall(b".")


@dataclass
class Control:
    """When the control was asked and answered lately, and its longest time."""

    connection: socket.socket
    spans: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_KEPT))
    asked_s: float = 0.0
    longest_s: float = 0.0

    def ask(self) -> None:
        """The next question."""
        self.asked_s = time.monotonic()
        self.connection.sendall(b".")

    def answered(self) -> None:
        """It has answered; ask again at once."""
        self.connection.recv(1)
        now_s = time.monotonic()
        self.longest_s = max(self.longest_s, now_s - self.asked_s)
        self.spans.append((self.asked_s, now_s))
        self.ask()

    def kept_waiting_s(self, from_s: float, to_s: float) -> float:
        """For how long of this time the machine kept the control, or the prober, from a core."""
        lost_s = 0.0
        for began_s, ended_s in (*reversed(self.spans), (self.asked_s, to_s)):
            if ended_s < from_s and began_s != self.asked_s:
                break
            lost_s += max(0.0, min(ended_s, to_s) - max(began_s, from_s) - _ECHO_USUAL_S)
        return lost_s


@dataclass
class Probed:
    """One API server, asked again and again on one connection."""

    pid: int
    connection: socket.socket
    sent_s: float | None = None
    waited_before_s: float = 0.0
    due_s: float = 0.0
    got: bytes = b""

    def ask(self) -> None:
        """The next question."""
        self.got = b""
        self.waited_before_s = without_core_s(self.pid)
        self.sent_s = time.monotonic()
        self.connection.sendall(_PROBE)

    def answered(self) -> bool:
        """Read what is there; whether that is the whole answer. Raises: EOFError when the connection ends."""
        chunk = self.connection.recv(4096)
        if not chunk:
            raise EOFError(f"API server {self.pid} closed the prober's connection")
        self.got += chunk
        head, found, body = self.got.partition(b"\r\n\r\n")
        if not found:
            return False
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or b"0")
        return len(body) >= length


@dataclass
class Worst:
    """The longest waits of all probes so far."""

    probes: int = 0
    seen_ms: float = 0.0
    stall_ms: float = 0.0
    from_s: float = 0.0
    """CLOCK_MONOTONIC, of the probe with the longest stall."""
    to_s: float = 0.0


def without_core_s(pid: int) -> float:
    """How long the main thread of a process has been ready without a core, since it began."""
    try:
        return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


def connections_to(port: int, pids: list[int]) -> list[Probed]:
    """One connection to each of these processes. Raises: RuntimeError when one of them takes none."""
    found: dict[int, Probed] = {}
    spare = []
    for _ in range(_CONNECT_TRIES):
        connection = socket.create_connection((HOST, port), timeout=_ASK_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(_PROBE)
        connection.recv(4096)
        own = connection.getsockname()[1]
        pid = next((pid for pid in pids if own in client_ports(pid)), None)
        if pid is None or pid in found:
            spare.append(connection)
        else:
            found[pid] = Probed(pid, connection)
        if len(found) == len(pids):
            break
    for connection in spare:
        connection.close()
    if len(found) < len(pids):
        raise RuntimeError(f"of the API servers {pids} only {sorted(found)} take connections")
    return list(found.values())


def probe(servers: list[Probed], control: Control, end: int) -> dict[str, object]:
    """Ask until the descriptor `end` says that it is enough. Returns: the longest waits, in milliseconds."""
    worst = Worst()
    closed: list[str] = []
    control.ask()
    told = False
    while True:
        now_s = time.monotonic()
        for server in servers:
            if server.sent_s is None and now_s >= server.due_s:
                server.ask()
        waiting = [server.connection for server in servers if server.sent_s is not None]
        ends: list[Any] = [end, control.connection, *waiting]
        readable, _, _ = select.select(ends, [], [], _EVERY_S)
        if end in readable:
            break
        if control.connection in readable:
            control.answered()
        for server in [server for server in servers if server.connection in readable]:
            try:
                if server.answered():
                    _judge(server, control, worst)
            except (OSError, EOFError) as error:
                closed.append(str(error))
                servers.remove(server)
        if worst.probes and not told:
            told = True
            print("probing", flush=True)
    for server in servers:  # also what was never answered
        if server.sent_s is not None:
            _judge(server, control, worst)
    control.longest_s = max(control.longest_s, time.monotonic() - control.asked_s)  # likewise
    return {**asdict(worst), "control_ms": control.longest_s * 1e3, "closed": closed}


def _judge(server: Probed, control: Control, worst: Worst) -> None:
    now_s = time.monotonic()
    assert server.sent_s is not None
    took_s = now_s - server.sent_s
    worst.probes += 1
    worst.seen_ms = max(worst.seen_ms, took_s * 1e3)
    if took_s * 1e3 > worst.stall_ms:
        kept_s = control.kept_waiting_s(server.sent_s, now_s)
        without_s = without_core_s(server.pid) - server.waited_before_s
        stall_ms = (took_s - max(kept_s, without_s)) * 1e3
        if stall_ms > worst.stall_ms:
            worst.stall_ms, worst.from_s, worst.to_s = stall_ms, server.sent_s, now_s
    server.sent_s, server.due_s = None, now_s + _EVERY_S


class Prober:
    """The prober in its process: `with Prober(port, pids) as prober: ...`, then prober.put_into(counts)."""

    def __init__(self, port: int, pids: list[int]) -> None:
        self._command = [sys.executable, "-m", "tests.torture.stalls", str(port), *map(str, pids)]
        self._found: dict[str, object] = {}

    def __enter__(self) -> "Prober":
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, text=True, cwd=_ROOT)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "probing\n":
            raise RuntimeError("the prober did not start; its output is above")
        return self

    def __exit__(self, *_: object) -> None:
        self._found = json.loads(self._process.communicate()[0])

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def __getitem__(self, name: str) -> float:
        """A figure of Worst, or control_ms, after the end."""
        return float(self._found[name])  # type: ignore[arg-type]

    def put_into(self, counts: Counts) -> None:
        """Tell the counts what was seen."""
        counts.stall_ms = max(counts.stall_ms or 0.0, self["stall_ms"])
        counts.seen_stall_ms = max(counts.seen_stall_ms, self["seen_ms"])
        counts.control_ms = max(counts.control_ms, self["control_ms"])
        for why in self._found["closed"]:  # type: ignore[attr-defined]
            counts.add("broken", why)


def main() -> None:
    port, *pids = map(int, sys.argv[1:])
    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:
        ours.close()
        echo(theirs)
        os._exit(0)
    theirs.close()
    servers = connections_to(port, pids)
    print(json.dumps(probe(servers, Control(ours), sys.stdin.fileno())), flush=True)
    ours.close()
    os.waitpid(child, 0)


if __name__ == "__main__":
    main()
