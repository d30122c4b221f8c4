"""Nested values of a call, taken apart into leaves and put together again: what forward takes and returns.

    before  {"image": x, "boxes": (a, None)}
    after   the leaves x, a, None with the paths ("image",), ("boxes", 0), ("boxes", 1)

Lists, tuples, named tuples, mappings, dataclasses, attrs classes and every class that is registered as a pytree
of torch. Dataclasses and mappings (the outputs of `transformers`, say) need no registration: nothing of the
user's process is changed. Pure; knows nothing of tensors.
"""

import copy
import dataclasses
import types
from collections import deque
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

from torch.utils import _pytree as pytree

# A step of a path: the key or the field's name as text, or the position.
Path = tuple[str | int, ...]


def leaves(value: Any) -> list[tuple[Path, Any]]:
    """Every leaf of value with its path, in order; value itself, with an empty path, when it is no structure."""
    children = _children(value)
    if children is None:
        return [((), value)]
    return [((step, *path), leaf) for step, child in children for path, leaf in leaves(child)]


def rebuilt(template: Any, values: Iterator[Any]) -> Any:
    """The structure of template with the next values in the places of its leaves; template is left as it is."""
    children = _children(template)
    if children is None:
        return next(values)
    return _with_children(template, [rebuilt(child, values) for _, child in children])


def _children(value: Any) -> list[tuple[str | int, Any]] | None:
    """The parts of value, each with its step, or None for a leaf."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, list | tuple | deque):
        return list(enumerate(value))
    if isinstance(value, Mapping):
        return [(str(key), item) for key, item in value.items()]
    if type(value) in pytree.SUPPORTED_NODES:
        return _registered_children(value)
    names = _field_names(value)
    return None if names is None else [(name, getattr(value, name)) for name in names]


def _registered_children(value: Any) -> list[tuple[str | int, Any]]:
    node = pytree.SUPPORTED_NODES[type(value)]
    if node.flatten_with_keys_fn is not None:
        return [(_step(key), child) for key, child in node.flatten_with_keys_fn(value)[0]]
    return list(enumerate(node.flatten_fn(value)[0]))


def _step(key: Any) -> str | int:
    """A key of torch's pytree as a step of a path."""
    return key.idx if hasattr(key, "idx") else str(getattr(key, "key", getattr(key, "name", key)))


def _field_names(value: Any) -> list[str] | None:
    if isinstance(value, type):
        return None
    if dataclasses.is_dataclass(value):
        return [field.name for field in dataclasses.fields(value) if hasattr(value, field.name)]
    if hasattr(type(value), "__attrs_attrs__"):
        return [field.name for field in type(value).__attrs_attrs__]
    return list(vars(value)) if isinstance(value, types.SimpleNamespace) else None


def _with_children(template: Any, children: Sequence[Any]) -> Any:
    """A value like template around other parts."""
    if isinstance(template, tuple) and hasattr(template, "_fields"):
        return type(template)(*children)
    if isinstance(template, list | tuple | deque):
        return type(template)(children)
    if isinstance(template, Mapping):
        items = dict(zip(template, children, strict=True))
        if not isinstance(template, MutableMapping):
            return type(template)(items)  # type: ignore[call-arg]
        made = copy.copy(template)
        made.update(items)
        return made
    if type(template) in pytree.SUPPORTED_NODES:
        node = pytree.SUPPORTED_NODES[type(template)]
        return node.unflatten_fn(children, node.flatten_fn(template)[1])
    made = copy.copy(template)
    for name, child in zip(_field_names(template) or (), children, strict=True):
        object.__setattr__(made, name, child)  # frozen dataclasses too
    return made
