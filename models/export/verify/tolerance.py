"""How far each output of a file may be off, and when a network is too ill-conditioned for that to mean anything.

In float32: 1e-4 relative, the project's promise, or 20 times the float32 eager network's own error against float64
where that is larger: a network that loses digits by itself in float32 cannot have them in a file; 20 leaves room for
other orders of summation. Never more than 1e-2: a network that cannot keep two digits is refused, since a file with a
wrong weight would be no further off.

In 16 bits the same own error says how much the network makes of one rounding, so u / 2**-24 times that error is what
rounding to u should cost (u = 2**-11 in fp16, 2**-8 in bf16). Measured over the networks of models/, random and
trained weights, the files were off by 0.16 to 1.4 times as much, 16 bits summing in float32 as they do; the tolerance
is 4 times as much, since another device rounds at other places. At least 8 u, for networks that are exact in float32
by luck, and never more than a tenth: a wrong network is that far off.

Integers and booleans have no small differences: every element that is settled (settled.py) must be right.

A caller who knows better sets the tolerance of an output by name. The measure: difference.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foldserve.models.errors import BadExample, NotCapturable
from foldserve.models.export.network.difference import Difference, Scale, difference, scale_of
from foldserve.models.export.precision.precision import Precision
from foldserve.models.export.verify.reference import ParityCase
from foldserve.service.artifact.tolerance import lower_tolerance

FILE_TOLERANCE = 1e-4
OWN_ERROR_FACTOR = 20.0
LARGEST_TOLERANCE = 1e-2
# Of the elements of an integer or boolean output, how many may be near ties: settled.py.
LARGEST_DOUBT = 0.1


@dataclass(frozen=True)
class Output:
    """One output and what its differences are measured by.

    axes: those of fixed size, other than the rows. scale: over all cases; None for integers and booleans.
    own_error: of the float32 eager network against float64, relative. tolerance: relative; both the share of elements
    for integers and booleans. chosen: whether the caller set the tolerance.
    """

    name: str
    axes: tuple[int, ...]
    scale: Scale | None
    own_error: float
    tolerance: float
    chosen: bool

    def difference(self, case: ParityCase, index: int, got: Tensor) -> Difference:
        """How far got is from what case wants of this output, its index-th; of integers what is settled counts."""
        want = case.wanted[index]
        if self.scale is None:
            settled = None if self.chosen else case.settled.get(index)
            if settled is not None and got.shape == want.shape and not got.is_floating_point():
                got = torch.where(settled, got, want)
            return difference(got, want)
        found = difference(got, want, self.scale)
        if case.reference:
            # A server has these rows alone, and so their own scale; what it is told must hold for it too.
            found = found.worse(difference(got, want, scale_of([want], self.axes)))
        return found

    def allows(self, found: Difference) -> bool:
        """Whether a file may be so far off. Of integers nothing that is settled may differ; the tolerance, for the
        server, is the share of the reference's elements that are not."""
        return found.max_rel <= (0.0 if self.scale is None and not self.chosen else self.tolerance)


def outputs_of(
    names: Sequence[str],
    axes: Sequence[tuple[int, ...]],
    cases: Sequence[ParityCase],
    precision: Precision,
    chosen: Mapping[str, float],
) -> tuple[Output, ...]:
    """Every output with its tolerance. axes: per output. chosen: the caller's tolerances, by name."""
    of_output = _whole_output, _float_output
    return tuple(
        of_output[cases[0].wanted[index].is_floating_point()](
            Output(name, static, None, 0.0, chosen.get(name, 0.0), name in chosen), index, cases, precision
        )
        for index, (name, static) in enumerate(zip(names, axes, strict=True))
    )


def _float_output(output: Output, index: int, cases: Sequence[ParityCase], precision: Precision) -> Output:
    scaled = replace(output, scale=scale_of([case.wanted[index] for case in cases], output.axes))
    own = max(_finite(scaled.difference(case, index, case.plain[index]).max_rel) for case in cases)
    allowed = output.tolerance if output.chosen else file_tolerance(precision, own)
    return replace(scaled, own_error=own, tolerance=allowed)


def _whole_output(output: Output, index: int, cases: Sequence[ParityCase], _: Precision) -> Output:
    masks = [case.settled[index] for case in cases if index in case.settled]
    total = sum(mask.numel() for mask in masks)
    doubtful = sum(int((~mask).sum()) for mask in masks) / total if total else 0.0
    of_reference = next(
        (case.settled[index] for case in cases if case.reference and index in case.settled), None
    )
    share = 0.0 if of_reference is None else 1.0 - float(of_reference.double().mean())
    return replace(output, own_error=doubtful, tolerance=output.tolerance if output.chosen else share)


def file_tolerance(precision: Precision, own_error: float) -> float:
    """How far a file may be off, relative. own_error: the float32 eager network's, against float64; see above."""
    if not precision.is_lower:
        return min(LARGEST_TOLERANCE, max(FILE_TOLERANCE, OWN_ERROR_FACTOR * own_error))
    return lower_tolerance(own_error, precision.roundoff)


def ill_conditioned(output: Output) -> bool:
    """Whether rounding itself leaves so little of this output that no useful tolerance is left, nor was one given."""
    if output.chosen:
        return False
    if output.scale is None:
        return output.own_error > LARGEST_DOUBT
    return OWN_ERROR_FACTOR * output.own_error > LARGEST_TOLERANCE


def refusal(output: Output, precision: Precision, place: str | None) -> NotCapturable:
    """Why an ill-conditioned network is refused. place: the layer where the digits are lost, where one is known."""
    needed = min(0.5, OWN_ERROR_FACTOR * output.own_error)
    mend = (
        f"set the tolerance that you can live with, as tolerance={{{output.name!r}: {needed:.1g}}}, or --tolerance "
        f"{output.name}={needed:.1g} on the command line."
    )
    if output.scale is None:
        return NotCapturable(
            f"the network is ill-conditioned: {output.own_error:.0%} of the elements of output {output.name!r} hang on "
            f"how {precision.word} rounds (near ties), more than the {LARGEST_DOUBT:.0%} that still tell a wrong "
            f"weight. Return the scores themselves, or {mend}"
        )
    where = f", first at {place}" if place else ""
    return NotCapturable(
        f"the network is ill-conditioned: in float32 the eager network is itself off by {output.own_error:.1e} "
        f"relative in output {output.name!r}{where}, so that a file would have to be let off by "
        f"{OWN_ERROR_FACTOR * output.own_error:.1e}; at most {LARGEST_TOLERANCE:.0e} still tells a wrong weight. "
        f"Avoid differences of large, nearly equal numbers there, or {mend}"
    )


def tolerance_from(options: Sequence[str]) -> float | dict[str, float] | None:
    """What the values of --tolerance say: one number, or NAME=NUMBER for each output. Raises: BadExample."""
    if not options:
        return None
    by_name: dict[str, float] = {}
    for option in options:
        name, _, number = option.rpartition("=")
        try:
            by_name[name] = float(number)
        except ValueError as error:
            raise BadExample(
                f"--tolerance {option} has no number; expected a number as 0.05, or OUTPUT=NUMBER as y=0.05"
            ) from error
    if "" in by_name:
        if len(options) > 1:
            raise BadExample(
                f"--tolerance is given {len(options)} times, once for all outputs; expected one number alone, or "
                "OUTPUT=NUMBER for each output"
            )
        return by_name[""]
    return by_name


def check_chosen(chosen: float | Mapping[str, float] | None, names: Sequence[str]) -> dict[str, float]:
    """The caller's tolerances by output. chosen: one for all, or by name. Raises: BadExample."""
    if chosen is None:
        return {}
    by_name = dict(chosen) if isinstance(chosen, Mapping) else dict.fromkeys(names, chosen)
    for name, number in by_name.items():
        if name not in names:
            raise BadExample(
                f"tolerance is given for {name!r}, which is no output of the network; expected one of "
                f"{', '.join(map(repr, names))}"
            )
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < 1:
            raise BadExample(
                f"the tolerance of output {name!r} is {number!r}; expected a number above 0 and below 1, where a file "
                "of zeros is off by 1"
            )
    return {name: float(number) for name, number in by_name.items()}


def _finite(value: float) -> float:
    """Float32 eager may overflow where float64 does not; such a case gives no tolerance."""
    return value if math.isfinite(value) else 0.0
