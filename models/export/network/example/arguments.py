"""The arguments that forward is called with: given by position or by name, bound to its parameters.

    before  (x, None, y), or {"x": x, "y": y}, and forward(x, mask=None, *, y)
    after   Arguments: parameter → value, its leaves with their names, and the call that is made of them

Knows nothing of tensors: what a leaf may be is example.py's.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from foldserve.models.errors import BadExample
from foldserve.models.export.network.example.structure import leaves, rebuilt

_Kind = inspect.Parameter


@dataclass(frozen=True)
class Arguments:
    """What forward is called with: parameter → value. `*args` counts as one tuple, `**kwargs` as one dict."""

    signature: inspect.Signature
    values: Mapping[str, Any]

    def named_leaves(self) -> list[tuple[str, Any]]:
        """Each leaf with its name: `x`, `batch_image` for batch["image"], `args_0`, and a key of `**kwargs`."""
        named = []
        for path, leaf in leaves(dict(self.values)):
            by_key = self.signature.parameters[str(path[0])].kind is _Kind.VAR_KEYWORD
            named.append(("_".join(map(str, path[by_key:])), leaf))
        return named

    def call(self, function: Callable[..., Any], new_leaves: Iterable[Any]) -> Any:
        """Call function with these leaves in the places of the ones given."""
        values = rebuilt(dict(self.values), iter(new_leaves))
        bound = inspect.BoundArguments(self.signature, values)
        return function(*bound.args, **bound.kwargs)


def bind(module: nn.Module, example_inputs: Any) -> Arguments:
    """Bind example_inputs to the parameters of module's forward.

    example_inputs: a tuple or list is given by position, a mapping by name; under the name of a `*args` it
        holds a tuple.
    Raises: BadExample when it is neither, or when forward does not take it.
    """
    signature = inspect.signature(module.forward)
    try:
        if isinstance(example_inputs, Mapping):
            bound = _bound_by_name(signature, example_inputs)
        elif isinstance(example_inputs, list | tuple):
            bound = signature.bind(*example_inputs)
        else:
            raise BadExample(
                f"example_inputs is a {type(example_inputs).__name__}; expected a tuple with one entry per "
                "argument of forward, for example (x,), or a dict by their names, {'x': x}"
            )
    except TypeError as error:
        raise BadExample(
            f"{type(module).__name__}.forward{signature} does not take the {len(example_inputs)} example "
            f"inputs given: {error}{_hint(signature, example_inputs)}"
        ) from error
    return Arguments(signature, dict(bound.arguments))


def _bound_by_name(signature: inspect.Signature, given: Mapping[str, Any]) -> inspect.BoundArguments:
    """Raises: TypeError as a call does."""
    rest = {str(name): value for name, value in given.items()}
    values: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind in {_Kind.POSITIONAL_ONLY, _Kind.VAR_POSITIONAL} and name in rest:
            values[name] = rest.pop(name)
    if not values:
        return signature.bind(**rest)
    # Such parameters take no keyword: those before them go by position too, as a caller would have to.
    last = max(list(signature.parameters).index(name) for name in values)
    positional: list[Any] = []
    for name, parameter in list(signature.parameters.items())[: last + 1]:
        if parameter.kind is _Kind.VAR_POSITIONAL:
            positional += list(values[name])
        elif name in values or name in rest:
            positional.append(values[name] if name in values else rest.pop(name))
        elif parameter.default is not _Kind.empty:
            positional.append(parameter.default)
        else:
            raise TypeError(f"missing a required argument: {name!r}")
    return signature.bind(*positional, **rest)


def _hint(signature: inspect.Signature, given: Any) -> str:
    by_name = [n for n, p in signature.parameters.items() if p.kind is _Kind.KEYWORD_ONLY]
    if not by_name or isinstance(given, Mapping):
        return ""
    return f". Inputs that forward takes by name alone ({', '.join(by_name)}) go into a dict: {{{by_name[0]!r}: ...}}"


def arranged(
    module: nn.Module, values: Sequence[Any], axes: dict[str, dict[int, str]], names: tuple[str, ...]
) -> tuple[tuple[Any, ...] | dict[str, Any], dict[str, dict[int, str]], tuple[str, ...] | None]:
    """Example inputs, dynamic axes and input names for described inputs: by name where forward has every name.

    So a described input reaches the parameter it is named after, optional ones may be left out and keyword-only
    ones given. Otherwise they go in order, and their names are those of the artifact.
    """
    parameters = inspect.signature(module.forward).parameters.values()
    known = {p.name for p in parameters if p.kind in {_Kind.POSITIONAL_OR_KEYWORD, _Kind.KEYWORD_ONLY}}
    takes_any = any(p.kind is _Kind.VAR_KEYWORD for p in parameters) and all(
        p.kind is _Kind.VAR_KEYWORD or p.name in names for p in parameters
    )
    if takes_any or set(names) <= known:
        return dict(zip(names, values, strict=True)), axes, None
    return tuple(values), axes, names
