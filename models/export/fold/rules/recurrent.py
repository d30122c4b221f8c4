"""Down into recurrent layers: their first layer reads the input through a matrix, once per direction.

    lstm, gru, rnn      W_ih * a     b_ih + W_ih @ c      a along the last axis, in the first layer of each direction

The hidden state is not touched. DeepSpeech 2 puts a norm before each of its recurrent layers (arXiv:1512.02595).
"""

from foldserve.models.export.fold.constants import rounded, rounded_weight
from foldserve.models.export.fold.graph import aten, describe, dtype_of, rank_of
from foldserve.models.export.fold.rule import DownRule, Match, Propagated

_RECURRENT = frozenset({aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input})


def _per_direction(site: Match) -> int:
    """How many weights a layer has per direction: W_ih, W_hh, two biases, and a projection in some LSTMs."""
    directions = 2 if site.arguments["bidirectional"] else 1
    layers: int = site.arguments["num_layers"]
    return len(site.arguments["params"]) // (layers * directions)


def _why_not(site: Match) -> str | None:
    values = site.arguments
    if len(site.inputs) != 1 or values["input"] not in site.inputs:
        return f"{describe(site.call)} takes it as something else than its input"
    if not all(site.constants.is_constant(weight) for weight in values["params"]):
        return f"the weights of {describe(site.call)} are not constants"
    if site.affine.has_shift and not values["has_biases"]:
        return f"{describe(site.call)} has no bias to take the norm's shift"
    return site.wrong_axis(rank_of(site.node("input")) - 1)


def _moved(site: Match) -> Propagated:
    values = site.arguments
    scale, shift = site.along(-1, site.node("input"))
    params = list(values["params"])
    step = _per_direction(site)
    for direction in range(2 if values["bidirectional"] else 1):
        place = direction * step
        weight = site.constants.value(params[place])
        assert weight is not None, "why_not has seen that it is constant"
        held, name = weight.double(), f"{site.call.name}_weight_{direction}"
        params[place] = rounded_weight(held * scale, dtype_of(values["params"][place]), 0, name)
        bias = site.constants.value(params[place + 2]) if values["has_biases"] else None
        if bias is not None:
            moved = bias.double() + held @ shift
            label = f"{site.call.name}_bias_{direction}"
            params[place + 2] = rounded(moved, dtype_of(values["params"][place + 2]), label)
    return Propagated((site.rewrite(params=params),))


RECURRENT_DOWN = (DownRule("recurrent layer", _RECURRENT, _why_not, _moved),)
