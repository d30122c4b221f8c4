"""Which sizes of the dynamic axes the files may take: a range and a multiple for each name.

    before  what the capture assumed of the sizes (guards.py), and a way to try some (trials.py)
    after   Sizes: {min, max, multiple_of} by name, names that share a size or hang on another, what was narrowed

An assumption is never dropped. Where it holds, the graph is the network. Where it does not, the network and the graph
are run at both ends of each stretch of sizes that breaks the same assumptions: they agree (it did not matter), the
network refuses too, or the graph is wrong, and the range ends before. What no range can say is refused.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from foldserve.models.errors import BadExample, NotCapturable
from foldserve.models.export.capture.sizes.guards import Assumptions
from foldserve.models.export.capture.sizes.size_search import allowed_sizes, eager_edges, progression
from foldserve.models.export.capture.sizes.trials import Trials, Verdict
from foldserve.models.export.network.example.dynamic_axes import ROWS
from foldserve.models.export.network.example.row_modes import SERVE_TOGETHER
from foldserve.service.artifact.manifest import DimEntry, DimEquals


@dataclass(frozen=True)
class SizeRange:
    """least <= size <= most (None: any), and a multiple of multiple_of."""

    least: int
    most: int | None
    multiple_of: int

    def __contains__(self, size: object) -> bool:
        return (
            isinstance(size, int)
            and self.least <= size
            and (self.most is None or size <= self.most)
            and size % self.multiple_of == 0
        )

    def __str__(self) -> str:
        multiple = f", multiples of {self.multiple_of}" if self.multiple_of > 1 else ""
        return f"{self.least} {f'to {self.most}' if self.most is not None else 'or more'}{multiple}"

    @property
    def least_multiple(self) -> int:
        """The least size: least is one unless a link made it."""
        return -(-self.least // self.multiple_of) * self.multiple_of

    def of_link(self, times: int, plus: int) -> "SizeRange":
        """The range of an axis whose size is `times` that of this one, plus `plus`."""
        most = None if self.most is None else self.most * times + plus
        return SizeRange(self.least * times + plus, most, self.multiple_of * times if plus == 0 else 1)


@dataclass(frozen=True)
class Narrowed:
    """Sizes that the network takes and the files do not. name: of the axis. reason: which, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Sizes:
    """ranges: by name. links: name → (other, times, plus), as in guards.py; names of one size are not in it, but in
    same: name → the name that stands for it. released: sizes by name where some assumption does not hold and the graph
    was right all the same; what is made of the graph may rely on the assumption, and is proved there.
    """

    ranges: Mapping[str, SizeRange]
    links: Mapping[str, tuple[str, int, int]]
    same: Mapping[str, str]
    narrowed: tuple[Narrowed, ...]
    released: tuple[Mapping[str, int], ...] = ()

    def name_of(self, name: str) -> str:
        """The name under which the size of an axis is known."""
        return self.same.get(name, name)

    def check_example(self, own: Mapping[str, int]) -> None:
        """Raise BadExample unless the files take the user's own example. own: its sizes, by name."""
        for name, size in own.items():
            allowed = self.ranges.get(self.name_of(name))
            if allowed is not None and size not in allowed:
                raise BadExample(
                    f"the example's {name!r} is {size}, and the network could only be captured for {allowed}: a size "
                    "of 1 inside of it is another case to torch.export. Give an example of such a size."
                )

    def check_all(self) -> None:
        """Raise NotCapturable when the network takes sizes that the files do not."""
        if self.narrowed:
            told = "; ".join(f"{one.name!r}: {one.reason}" for one in self.narrowed)
            raise NotCapturable(
                f"all sizes were asked for, and the files would take fewer than the network: {told}. Let forward do "
                "the same for every size, or export without all sizes (--all-sizes)."
            )

    def edges(self, own: Mapping[str, int]) -> tuple[dict[str, int], ...]:
        """Sizes by name at which to prove the files: all the least, all near the largest, and unequal ones between.

        own: the example's. None is more than twice as large, but for a largest size that is within reach.
        """
        free = [name for name in own if name in self.ranges and name not in self.links]
        if not free:
            return ()

        def near(name: str, wanted: int) -> int:
            mine = self.ranges[name]
            size = max(mine.least_multiple, wanted // mine.multiple_of * mine.multiple_of)
            return size if mine.most is None else min(size, mine.most // mine.multiple_of * mine.multiple_of)

        points = [{name: near(name, 1) for name in free}, {name: near(name, 2 * own[name]) for name in free}]
        steps = {name: self.ranges[name].multiple_of for name in free}
        points.append(
            {name: near(name, own[name] + (1 - 2 * i) * steps[name]) for i, name in enumerate(free)}
        )
        edges = [self.complete(point) for point in points]
        return (*edges, *(dict(point) for point in self.released if dict(point) not in edges))

    def with_counts(
        self, own: Mapping[str, int], names: Sequence[str], counts: Sequence[int]
    ) -> list[dict[str, int]]:
        """Sizes by name, those of the example but for these names, which have each of the counts that they may."""
        free = [name for name in own if name in self.ranges and name not in self.links]
        points = [
            {n: count if n in names and count in self.ranges[n] else own[n] for n in free} for count in counts
        ]
        return [self.complete(point) for point in points if any(point[n] != own[n] for n in free)]

    def complete(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """sizes of the free names, and with them those of all the others."""
        linked = {name: times * sizes[other] + plus for name, (other, times, plus) in self.links.items()}
        return {**sizes, **linked, **{name: sizes[other] for name, other in self.same.items()}}

    def to_manifest(self) -> dict[str, DimEntry]:
        """By name, `equals` where it hangs on another name."""
        return {
            name: DimEntry(
                min=own.least, max=own.most, multiple_of=own.multiple_of, equals=self._equals(name)
            )
            for name, own in self.ranges.items()
        }

    def _equals(self, name: str) -> DimEquals | None:
        if name not in self.links:
            return None
        other, times, plus = self.links[name]
        return DimEquals(dim=self.name_of(other), times=times, plus=plus)


ANY_SIZE = Sizes({}, {}, {}, ())
"""Of a network of which nothing but the rows is dynamic."""


def find_sizes(
    own: Mapping[str, int], assumptions: Assumptions, trials: Trials, narrowed: Sequence[Narrowed]
) -> Sizes:
    """The sizes that the files may take. own: the captured example's, by name, with the rows.

    Raises: NotCapturable when an assumption is none that a range and a multiple can say.
    """
    ranges: dict[str, SizeRange] = {}
    told = list(narrowed)
    for name in own:
        if name == ROWS or name in assumptions.linked:
            continue
        ranges[name], found = _range(name, own, assumptions, trials)
        told += found
    same = {n: other for n, (other, times, plus) in assumptions.linked.items() if (times, plus) == (1, 0)}
    links = {n: link for n, link in assumptions.linked.items() if n not in same}
    for name, (other, times, plus) in links.items():
        ranges[name] = ranges[other].of_link(times, plus)
    if trials.comparable:
        _check_together(own, ranges, assumptions, trials)
    return Sizes(ranges, links, same, tuple(told), _released(ranges, assumptions, trials))


_MOST_RELEASED = 6
"""Each is one more run of the network in float64."""


def _released(
    ranges: Mapping[str, SizeRange], assumptions: Assumptions, trials: Trials
) -> tuple[Mapping[str, int], ...]:
    """The least sizes in range for each set of assumptions that do not hold there."""
    found: dict[tuple[int, ...], Mapping[str, int]] = {}
    for sizes in sorted(trials.right(), key=lambda one: max(one.values())):
        broken = assumptions.broken(sizes, range(len(assumptions.every)))
        dims = {name: size for name, size in sizes.items() if name != ROWS}
        in_range = all(name not in ranges or size in ranges[name] for name, size in dims.items())
        if broken and dims and in_range:
            found.setdefault(broken, dims)
    return tuple(list(found.values())[:_MOST_RELEASED])


def complete(sizes: Mapping[str, int], assumptions: Assumptions) -> dict[str, int]:
    """sizes with every linked one as it must be."""
    linked = {n: times * sizes[other] + plus for n, (other, times, plus) in assumptions.linked.items()}
    return {**sizes, **linked}


def _range(
    name: str, own: Mapping[str, int], assumptions: Assumptions, trials: Trials
) -> tuple[SizeRange, list[Narrowed]]:
    def at(size: int) -> dict[str, int]:
        return complete({**own, name: size}, assumptions)

    allowed = allowed_sizes(name, at, own[name], assumptions, trials)
    found = progression(own[name], allowed)
    lost, wrong = allowed.lost(*found)
    if wrong and not allowed.worth_a_range(*found):
        raise NotCapturable(
            f"the files would take only few of the sizes of {name!r} that the network takes, {SizeRange(*found)}: "
            f"{lost}. Make the axis static, or let forward do the same for every size."
        )
    told = [Narrowed(name, f"{SizeRange(*found)}; {lost}")] if lost else []
    least, most = eager_edges(own[name], found, lambda size: trials.verdict(at(size)))
    return SizeRange(least, most, found[2]), told


_ROW_COUNTS = (1, 2, 3, 7, 32, 65_536)


def _check_together(
    own: Mapping[str, int], ranges: Mapping[str, SizeRange], assumptions: Assumptions, trials: Trials
) -> None:
    """Raise NotCapturable where sizes that are each in range break an assumption together and the graph is wrong, or
    where the number of rows is not free.
    """
    together = [
        index for index, one in enumerate(assumptions.every) if len(one.names) > 1 or one.names == {ROWS}
    ]
    broken: dict[int, list[dict[str, int]]] = {}
    for point in _points(own, ranges, assumptions):
        for index in assumptions.broken(point, together):
            broken.setdefault(index, []).append(point)
    for index, points in broken.items():
        assumption = assumptions.every[index]
        points.sort(key=lambda point: max(point.values()))
        affordable = [point for point in points if trials.affordable(point)]
        tried = [trials.verdict(p) for p in (affordable[:1] + affordable[-1:] or points[:1])]
        several = len(assumption.names) > 1
        unlike = assumption.is_equality() and several and Verdict.REFUSED in tried
        if not unlike and not {Verdict.WRONG, Verdict.UNTRIED} & set(tried):
            continue
        if assumption.names == {ROWS}:
            raise NotCapturable(
                f"the network does not take every number of rows as it takes {own[ROWS]}: it was captured under the "
                f"assumption {assumption.text}{assumption.place}. The server decides how many rows a batch has: let "
                f"forward do the same for every number. {SERVE_TOGETHER}"
            )
        raise NotCapturable(
            f"the network takes sizes of {', '.join(map(repr, sorted(assumption.names)))} that hang on each other in "
            f"a way that no range can say: {assumption.text}{assumption.place}. Make one of them static, or let "
            "forward do the same for every size."
        )


def _points(
    own: Mapping[str, int], ranges: Mapping[str, SizeRange], assumptions: Assumptions
) -> Iterable[dict[str, int]]:
    """Sizes that are each in range: at the edges, around the example, equal to each other, and wherever an assumption
    on several names turns.
    """
    free = [name for name in own if name not in assumptions.linked]
    values: dict[str, Iterable[int]] = {name: _values(own, name, ranges) for name in free}
    shared = {size for name in free if name != ROWS for size in values[name]}
    for name in free:
        if name != ROWS:
            values[name] = sorted({*values[name], *(size for size in shared if size in ranges[name])})
    seen: set[tuple[int, ...]] = set()
    for name in free:
        mine = ranges.get(name, _ROWS)
        for other in free:
            for size in values[other]:
                base = {**own, other: size}
                turning = _turning(name, base, assumptions)
                for one in sorted({*values[name], *(turn for turn in turning if turn in mine)}):
                    point = complete({**base, name: one}, assumptions)
                    key = tuple(point[n] for n in own)
                    if key not in seen:
                        seen.add(key)
                        yield point


def _turning(name: str, sizes: Mapping[str, int], assumptions: Assumptions) -> set[int]:
    """Sizes of one axis, the others being as in sizes, for which an assumption on several does not hold."""
    return {
        turn
        for assumption in assumptions.of(name)
        if len(assumption.names) > 1 or name == ROWS
        for turn in assumption.turning_points(name, sizes)
        if not assumption.holds({**sizes, name: turn})
    }


def _values(own: Mapping[str, int], name: str, ranges: Mapping[str, SizeRange]) -> set[int]:
    if name == ROWS:
        return set(_ROW_COUNTS)
    mine, size = ranges[name], own[name]
    step = mine.multiple_of
    near = {mine.least, mine.least + step, size - step, size, size + step, 2 * size, 4 * size}
    if mine.most is not None:
        near |= {mine.most, mine.most - step}
    return {one for one in near if one in mine}


_ROWS = SizeRange(1, None, 1)
