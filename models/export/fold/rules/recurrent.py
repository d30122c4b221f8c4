"""Into recurrent consumers: their first layer reads the input through a matrix, once per direction.

    lstm, gru, rnn      W_ih * a     b_ih + W_ih @ c      a along the last axis, in the first layer of each direction

The hidden state is not touched. DeepSpeech 2 puts a norm before each of its recurrent layers (arXiv:1512.02595).
"""

from foldserve.models.export.fold.constants import rounded, rounded_weight
from foldserve.models.export.fold.graph import aten, describe, dtype_of, rank_of
from foldserve.models.export.fold.rule import ConsumerRule, Match, Propagated

_RECURRENT = frozenset({aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input})


def _per_direction(match: Match) -> int:
    """How many weights a layer has per direction: W_ih, W_hh, two biases, and a projection in some LSTMs."""
    directions = 2 if match.arguments["bidirectional"] else 1
    layers: int = match.arguments["num_layers"]
    return len(match.arguments["params"]) // (layers * directions)


def _why_not(match: Match) -> str | None:
    values = match.arguments
    if len(match.inputs) != 1 or values["input"] not in match.inputs:
        return f"{describe(match.call)} takes it as something else than its input"
    if not all(match.constants.is_constant(weight) for weight in values["params"]):
        return f"the weights of {describe(match.call)} are not constants"
    if match.affine.has_shift and not values["has_biases"]:
        return f"{describe(match.call)} has no bias to take the norm's shift"
    return match.wrong_axis(rank_of(match.node("input")) - 1)


def _propagated(match: Match) -> Propagated:
    values = match.arguments
    scale, shift = match.along(-1, match.node("input"))
    params = list(values["params"])
    step = _per_direction(match)
    for direction in range(2 if values["bidirectional"] else 1):
        place = direction * step
        weight = match.constants.value(params[place])
        assert weight is not None, "why_not has seen that it is constant"
        held, name = weight.double(), f"{match.call.name}_weight_{direction}"
        params[place] = rounded_weight(held * scale, dtype_of(values["params"][place]), 0, name)
        bias = match.constants.value(params[place + 2]) if values["has_biases"] else None
        if bias is not None:
            moved = bias.double() + held @ shift
            label = f"{match.call.name}_bias_{direction}"
            params[place + 2] = rounded(moved, dtype_of(values["params"][place + 2]), label)
    return Propagated((match.rewrite(params=params),))


RECURRENT_INTO_CONSUMERS = (ConsumerRule("recurrent layer", _RECURRENT, _why_not, _propagated),)
