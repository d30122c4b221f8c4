"""Activations by name, so that a network's constructor, a config file and a test can all say "gelu".

Each call makes a new module, so no two layers share one. None works in place: a captured graph is
functional anyway, and an in-place activation would overwrite what a skip connection still needs.
"""

from collections.abc import Callable

from torch import nn

from foldserve.models.errors import UnknownActivation

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,  # slope 0.01
    "elu": nn.ELU,  # alpha 1
    "gelu": nn.GELU,  # the exact one, with erf
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,  # beta 1; the identity above 20
    "hardswish": nn.Hardswish,
}

ACTIVATIONS: tuple[str, ...] = tuple(_ACTIVATIONS)


def activation(name: str) -> nn.Module:
    """Return a new elementwise activation: in and out float (...), dtype and shape are kept.

    Raises: UnknownActivation (also a ValueError), which lists the names there are.
    """
    try:
        make = _ACTIVATIONS[name]
    except KeyError:
        raise UnknownActivation(
            f"there is no activation {name!r}; expected one of: {', '.join(ACTIVATIONS)}"
        ) from None
    return make()
