"""Keep what torch.export looks up per weight from growing with the square of their number.

For each weight, torch 2.13 makes the dict of all weights anew (four times a placeholder), and matches a regular
expression against the name of each layer. Of 1,000 layers with a norm that is half of the time of a capture. Here the
dicts are made once a graph, and names are compared before they are matched; what is found is the same.
"""

import contextlib
import importlib
import re
import types
from collections.abc import Iterator
from typing import Any

from torch.export import _trace, exported_program

_METADATA = "_populate_param_buffer_metadata_to_new_gm"
_MATCH = "_is_call_name"


@contextlib.contextmanager
def linear_lookups() -> Iterator[None]:
    """Within: torch.export's look-ups by name take constant time each. Puts back what it replaces."""
    metadata = getattr(exported_program, _METADATA)
    unflatten = importlib.import_module("torch.export.unflatten")  # a function of that name hides the module
    replaced = ((exported_program, _METADATA), (_trace, _METADATA), (unflatten, _MATCH))
    kept = [(owner, name, getattr(owner, name)) for owner, name in replaced]

    def with_dicts_made_once(of_weights: dict[str, Any], graph_module: Any, signature: Any) -> None:
        made = types.SimpleNamespace(
            inputs_to_parameters=signature.inputs_to_parameters, inputs_to_buffers=signature.inputs_to_buffers
        )
        metadata(of_weights, graph_module, made)

    for owner, name, _ in kept:
        setattr(owner, name, with_dicts_made_once if name == _METADATA else _is_call_name)
    try:
        yield
    finally:
        for owner, name, original in kept:
            setattr(owner, name, original)


_CALLED_AGAIN = re.compile(r"@\d+$")


def _is_call_name(call_name: str, base: str) -> bool:
    """Whether call_name is base, or base@2: torch.export's name for a second call of a module."""
    return call_name == base or (
        call_name.startswith(base) and _CALLED_AGAIN.match(call_name, len(base)) is not None
    )
