"""What a part of the torture saw, in numbers, and which of its bounds are broken. Knows nothing of servers."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

STALL_LIMIT_MS: Final = 100.0
"""Longest that /v2/health/live may keep somebody waiting, over what the machine itself kept everybody waiting."""
_EXAMPLES: Final = 2
"""Of each count that should be 0."""
_EXAMPLE_CHARS: Final = 300

NEVER: Final = ("wrong", "swapped", "hung", "input_5xx", "uncaused_deaths", "refused", "broken_promises")
"""What may not be in any part, whatever is killed."""
UNLESS_KILLED: Final = ("broken", "unready", "crashed", "expired", "turned_away")
"""What may only be where something was killed or stopped."""


@dataclass
class Counts:
    """One part. `zero` names the counts that break a bound when they are not 0."""

    part: str
    zero: tuple[str, ...] = NEVER + UNLESS_KILLED

    requests: int = 0
    verified: int = 0
    """Answers 200 of which every number was compared with what this request must get."""
    right_refusals: int = 0
    """Bad requests that got the status that they must get."""
    deadlines: int = 0
    """Requests that asked for little time and were told that it had passed."""
    cancelled: int = 0
    """Requests that were left alone before their answer."""
    inputs: int = 0
    """Bodies that a fuzzer gave to a codec."""
    accepted: int = 0
    """Of these, those that became a tensor, which was compared; of mutated requests, the answers 200."""

    wrong: int = 0
    swapped: int = 0
    """Another request's numbers, or another request's id."""
    hung: int = 0
    """Neither answer nor end of the connection within the limit."""
    input_5xx: int = 0
    """5xx for which nothing but what was sent can be the cause."""
    refused: int = 0
    """Good requests that were told to be bad: 4xx but for 429."""
    turned_away: int = 0
    """Good requests that were answered 429."""
    broken: int = 0
    """Connections that ended instead of an answer."""
    unready: int = 0
    """503."""
    crashed: int = 0
    """500 model_crashed: the process died twice under the request."""
    expired: int = 0
    """504 for a request that had not asked for a deadline."""
    uncaused_deaths: int = 0
    """Processes of the server that ended, and that nobody had killed."""
    broken_promises: int = 0
    """Whatever else must hold and did not; the examples say what."""

    kills: int = 0
    stops: int = 0
    peak_mib: float = 0.0
    """Resident memory of the largest process, shared pages included."""
    longest_s: float = 0.0
    stall_ms: float | None = None
    """Longest wait for /v2/health/live, less what the machine kept the prober or the server from a core."""
    seen_stall_ms: float = 0.0
    """The same as a client saw it."""
    control_ms: float = 0.0
    """Longest wait for the echo process beside it."""
    quiet_ms: float = 0.0
    """Longest wait for /v2/health/live before there was any load."""
    by_protocol: Counter[str] = field(default_factory=Counter)
    """Of the verified answers, how many each protocol gave."""
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, example: str = "") -> None:
        """Count one more, and keep what it looked like if there is room."""
        setattr(self, name, getattr(self, name) + 1)
        shown = self.examples.setdefault(name, [])
        if example and len(shown) < _EXAMPLES:
            shown.append(example[:_EXAMPLE_CHARS])

    def answered_in(self, seconds: float) -> None:
        """An answer took so long."""
        self.longest_s = max(self.longest_s, seconds)

    def broken_bounds(self) -> list[str]:
        """What does not hold, in words; empty when all is well."""
        found = [
            f"{self.part}: {count} {name.replace('_', ' ')}"
            for name in self.zero
            if (count := getattr(self, name))
        ]
        if self.stall_ms is not None and self.stall_ms >= STALL_LIMIT_MS:
            found.append(f"{self.part}: /v2/health/live stalled for {self.stall_ms:.0f} ms")
        return found

    def shown(self) -> list[str]:
        """What the broken bounds looked like."""
        stalled = self.stall_ms is not None and self.stall_ms >= STALL_LIMIT_MS
        names = (*self.zero, *["stall_ms"] * stalled)
        return [f"{name}: {example}" for name in names for example in self.examples.get(name, ())]

    def line(self) -> str:
        """All counts in one line."""
        words = [f"{self.requests} requests, {self.verified} x 200 verified"]
        if self.inputs:
            words = [f"{self.inputs} bodies, {self.accepted} accepted and compared"]
        elif self.accepted:
            words = [f"{self.requests} requests, {self.accepted} x 200"]
        always = ("wrong", "swapped", "hung", "input_5xx", "uncaused_deaths")
        names = {"input_5xx": "5xx from input", "uncaused_deaths": "deaths nobody caused"}
        words += [f"{getattr(self, name)} {names.get(name, name)}" for name in always]
        for name in (
            "right_refusals", "deadlines", "cancelled", "kills", "stops", "refused", "turned_away", "broken",
            "unready", "crashed", "expired", "broken_promises",
        ):  # fmt: skip
            if count := getattr(self, name):
                words.append(f"{count} {name.replace('_', ' ')}")
        if self.stall_ms is not None:
            words.append(
                f"longest stall {self.stall_ms:.0f} ms (seen {self.seen_stall_ms:.0f}, "
                f"control {self.control_ms:.0f}, quiet {self.quiet_ms:.0f})"
            )
        if self.by_protocol:
            shares = [f"{name} {count}" for name, count in sorted(self.by_protocol.items())]
            words.append(f"right by protocol: {', '.join(shares)}")
        if self.peak_mib:
            words.append(f"largest process {self.peak_mib:.0f} MiB")
        words.append(f"longest answer {self.longest_s:.3g} s")
        return f"{self.part}: " + ", ".join(words)
