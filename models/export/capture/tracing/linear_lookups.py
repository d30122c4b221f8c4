"""Keep what torch.export looks up per weight from growing with the square of their number.

For each weight, torch 2.13 makes the dict of all weights anew (four times a placeholder), and looks for its layer among
all, since a second call of layer `a` is a layer `a@2` that shares its weights. Of 1,000 layers with a norm that is half
of the time of a capture. Here the dicts are made once a graph, and a layer is found by its name where no name has an
`@`; what is found is the same.
"""

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.export import _trace, _unlift, exported_program

_METADATA = "_populate_param_buffer_metadata_to_new_gm"
_REGISTER = "_register_attrs_to_new_gm"
_ASSIGN = "_assign_attr"


@contextlib.contextmanager
def linear_lookups() -> Iterator[None]:
    """Within: torch.export's look-ups by name take constant time each. Puts back what it replaces."""
    metadata = getattr(exported_program, _METADATA)
    register = getattr(_unlift, _REGISTER)

    def with_dicts_made_once(of_weights: dict[str, Any], graph_module: Any, signature: Any) -> None:
        made = types.SimpleNamespace(
            inputs_to_parameters=signature.inputs_to_parameters, inputs_to_buffers=signature.inputs_to_buffers
        )
        metadata(of_weights, graph_module, made)

    def with_layers_by_name(graph_module: Any, signature: Any, *values: Any) -> None:
        names = (name for of_one_kind in values for name in of_one_kind)
        if any("@" in name for name in (*dict(graph_module.named_modules()), *names)):
            register(graph_module, signature, *values)
            return
        with _replaced((_unlift, _ASSIGN, _by_name(getattr(_unlift, _ASSIGN)))):
            register(graph_module, signature, *values)

    with _replaced(
        (exported_program, _METADATA, with_dicts_made_once),
        (_trace, _METADATA, with_dicts_made_once),
        (_unlift, _REGISTER, with_layers_by_name),
    ):
        yield


@contextlib.contextmanager
def _replaced(*replacements: tuple[Any, str, Callable[..., None]]) -> Iterator[None]:
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in replacements]
    for owner, name, replacement in replacements:
        setattr(owner, name, replacement)
    try:
        yield
    finally:
        for owner, name, original in kept:
            setattr(owner, name, original)


def _by_name(assign: Callable[..., None]) -> Callable[..., None]:
    """torch's _assign_attr for layers of which each is called once: the layer first, made where there is none."""

    def assigned(value: Any, to_module: nn.Module, target: str, *args: Any, **kwargs: Any) -> None:
        *path, name = target.split(".")
        for part in path:
            if not hasattr(to_module, part):
                setattr(to_module, part, nn.Module())
            to_module = getattr(to_module, part)
        assign(value, to_module, name, *args, **kwargs)

    return assigned
