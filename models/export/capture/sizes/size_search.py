"""The sizes of one axis, the others being as in the example: which are allowed, and the range that holds most of them.

    before  what was assumed (guards.py), what a trial says (trials.py)
    after   the least and the largest size and the multiple, all of whose sizes the files answer rightly

Sizes are looked at one by one up to a few times the example's; above that, where an assumption turns, and by doubling
and bisecting. Pure but for the trials it is given.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from foldserve.models.export.capture.sizes.guards import Assumptions
from foldserve.models.export.capture.sizes.trials import Trials, Verdict

_LOOKED_AT = 1024
_TIMES_THE_EXAMPLE = 4
_LARGEST = 2**31
# Of the sizes in an allowed range, so many of all that are allowed; fewer is no range that anybody would want.
_WORTH_A_RANGE = 0.5

At = Callable[[int], dict[str, int]]
"""Every size by name, when the axis has this one."""


@dataclass
class Allowed:
    """Whether the files may take a size; `sizes in allowed` asks. Owned by one search."""

    at: At
    own: int
    indexes: Sequence[int]
    assumptions: Assumptions
    trials: Trials
    limit: int
    beyond: Sequence[int]
    groups: Mapping[tuple[int, ...], Sequence[int]]
    verdicts: dict[tuple[int, ...], Verdict] = field(default_factory=dict)

    def broken(self, size: int) -> tuple[int, ...]:
        """The assumptions that do not hold there."""
        return self.assumptions.broken(self.at(size), self.indexes)

    def __contains__(self, size: int) -> bool:
        return self._verdict_of(self.broken(size), size) is Verdict.RIGHT

    def _verdict_of(self, broken: tuple[int, ...], size: int) -> Verdict:
        """What comes of all sizes that break the same assumptions: the worst of a few trials."""
        if not broken:
            return Verdict.RIGHT
        if broken not in self.verdicts:
            sizes = [s for s in self.groups.get(broken, (size,)) if self.trials.affordable(self.at(s))]
            picks = sorted({sizes[0], sizes[-1]}) if sizes else [size]
            if sizes and sizes[-1] - sizes[0] >= len(sizes):  # no stretch, but here and there
                picks.append(sizes[len(sizes) // 2])
            found = {self.trials.verdict(self.at(pick)) for pick in picks}
            worst = (Verdict.WRONG, Verdict.RIGHT, Verdict.REFUSED, Verdict.UNTRIED)
            self.verdicts[broken] = next(verdict for verdict in worst if verdict in found)
        return self.verdicts[broken]

    def lost(self, least: int, most: int | None, multiple: int) -> tuple[str, bool]:
        """What the network takes outside of a range, nearest to the example, and why the files do not; "" when
        nothing. And whether they do not, or would, at a size that the range leaves out.
        """
        told = ""
        for size in sorted((*range(1, self.limit + 1), *self.beyond), key=lambda s: abs(s - self.own)):
            if size >= least and (most is None or size <= most) and size % multiple == 0:
                continue
            broken = self.broken(size)
            verdict = self._verdict_of(broken, size)
            if verdict is Verdict.REFUSED:
                continue
            if verdict is Verdict.RIGHT:
                told = told or f"{size} would be right too, and is outside of the range"
                continue
            assumption = self.assumptions.every[broken[0]]
            does = "answers otherwise than the files" if verdict is Verdict.WRONG else "was not tried"
            return f"at {size} the network {does}: assumed is {assumption.text}{assumption.place}", True
        return told, False

    def share(self, least: int, most: int | None, multiple: int) -> float:
        """Of the sizes that are allowed, as far as they were looked at, the part in a range."""
        inside = sum(
            1
            for s in range(1, self.limit + 1)
            if s in self and s >= least and (most is None or s <= most) and s % multiple == 0
        )
        return inside / max(1, sum(1 for s in range(1, self.limit + 1) if s in self))

    def worth_a_range(self, least: int, most: int | None, multiple: int) -> bool:
        """Whether a range holds most of what is allowed."""
        return self.share(least, most, multiple) >= _WORTH_A_RANGE


def allowed_sizes(name: str, at: At, own: int, assumptions: Assumptions, trials: Trials) -> Allowed:
    """Look at the sizes of the axis `name`; at gives all sizes for one of it."""
    names = {name, *(n for n, (other, _, _) in assumptions.linked.items() if other == name)}
    indexes = [i for i, assumption in enumerate(assumptions.every) if assumption.names & names]
    limit = max(_TIMES_THE_EXAMPLE * own, _LOOKED_AT)
    turning = {
        size
        for index in indexes
        for size in assumptions.every[index].turning_points(name, at(own))
        if limit < size <= _LARGEST
    }
    groups: dict[tuple[int, ...], list[int]] = {}
    beyond = []
    for size in (*range(1, limit + 1), *sorted(turning)):
        broken = assumptions.broken(at(size), indexes)
        groups.setdefault(broken, []).append(size)
        if broken and size > limit:
            beyond.append(size)
    return Allowed(at, own, indexes, assumptions, trials, limit, beyond, groups)


def progression(own: int, allowed: Allowed) -> tuple[int, int | None, int]:
    """The least and the largest size, and the multiple, of the range around own that holds the most allowed sizes."""
    best = (0, own, own, own)
    for multiple in (m for m in range(1, own + 1) if own % m == 0):
        if best[0] > allowed.limit // multiple:
            break  # not even all of them would be more
        least = most = own
        while least - multiple >= 1 and least - multiple in allowed:
            least -= multiple
        while most + multiple <= allowed.limit and most + multiple in allowed:
            most += multiple
        best = max(best, ((most - least) // multiple + 1, least, most, multiple), key=lambda one: one[0])
    _, least, most, multiple = best
    if most + multiple <= allowed.limit:
        return least, most, multiple
    return least, _climbed(most, multiple, allowed), multiple


def _climbed(most: int, multiple: int, allowed: Allowed) -> int | None:
    """The largest size from most upward, in steps of multiple; None where there is no end."""
    steps = (most + multiple * 2**k for k in range(_LARGEST.bit_length()))
    suspects = sorted({*allowed.beyond, *(s for s in steps if s <= _LARGEST)})
    above = [s for s in suspects if s > most and s % multiple == 0]
    end = next((size for size in above if size not in allowed), None)
    if end is None:
        return None
    good = max((s for s in above if s < end), default=most)
    return bisected(good, end, multiple, lambda size: size in allowed)


def bisected(good: int, bad: int, multiple: int, works: Callable[[int], bool]) -> int:
    """The size next to the end of what works, between one that works and one that does not, in steps of multiple."""
    while abs(bad - good) > multiple:
        middle = good + (bad - good) // multiple // 2 * multiple
        if bad < good:
            middle = good - (good - bad) // multiple // 2 * multiple
        good, bad = (middle, bad) if works(middle) else (good, middle)
    return good


def eager_edges(
    own: int, found: tuple[int, int | None, int], verdict: Callable[[int], Verdict]
) -> tuple[int, int | None]:
    """The least and the largest size of a range that the network itself takes, as far as it can be tried."""
    least, most, multiple = found

    def works(size: int) -> bool:
        return verdict(size) is not Verdict.REFUSED

    if least < own and not works(least):
        least = bisected(own, least, multiple, works)
    good = own
    while most is None or good < most:
        size = 2 * good if most is None else min(2 * good, most)
        if verdict(size) is Verdict.UNTRIED:
            break
        if not works(size):
            return least, bisected(good, size, multiple, works)
        good = size
    return least, most
