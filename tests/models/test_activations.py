"""models/activations.py: every name, and what a wrong one is told."""

import math

import pytest
import torch

from foldserve.models.activations import ACTIVATIONS, activation
from foldserve.models.errors import ExportError, UnknownActivation


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# Written down from each paper's formula, so that a name that gives another function is seen.
FORMULAS = {
    "relu": lambda x: max(x, 0.0),
    "leaky_relu": lambda x: x if x > 0 else 0.01 * x,
    "elu": lambda x: x if x > 0 else math.exp(x) - 1,
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "silu": lambda x: x * sigmoid(x),
    "sigmoid": sigmoid,
    "tanh": math.tanh,
    "softplus": lambda x: math.log1p(math.exp(x)),
    "hardswish": lambda x: x * min(max(x + 3, 0), 6) / 6,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_activation_of_that_name_computes_its_formula(name):
    points = [-4.0, -1.5, -0.1, 0.0, 0.1, 1.5, 4.0]
    given = torch.tensor(points, dtype=torch.float64)
    answered = activation(name)(given)
    expected = torch.tensor([FORMULAS[name](x) for x in points], dtype=torch.float64)
    # Both sides are float64 and at most a few roundings of 1e-16 apart.
    torch.testing.assert_close(answered, expected, rtol=1e-14, atol=1e-15)
    assert given.tolist() == points, "an activation must not work in place"


def test_every_activation_has_its_formula_checked():
    assert set(ACTIVATIONS) == set(FORMULAS)


def test_two_activations_of_one_name_are_two_modules():
    assert activation("relu") is not activation("relu")


def test_unknown_activation_lists_the_names_and_is_both_kinds_of_error():
    with pytest.raises(
        UnknownActivation, match=r"no activation 'swish'.*relu, leaky_relu, .*hardswish"
    ) as caught:
        activation("swish")
    assert isinstance(caught.value, ExportError)
    assert isinstance(caught.value, ValueError)
