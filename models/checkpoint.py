"""Find the weights of a network in a checkpoint, as trainers write it.

    file                                                               network
    {"state_dict": {"model.module.conv.weight": ...}, "epoch": 3}      conv.weight
    {"n_averaged": ..., "module.conv.weight": ...}                     conv.weight
    {"conv.weight": ...}                                               network.conv.weight, in a wrapper

A checkpoint is a tree of dicts and, within a dict of tensors, of names with dots. Each node of it is looked at: the
weights are there where every name and every shape fits. Nothing is guessed: what fits nowhere is refused, what fits at
several places too, unless convention says which is meant; and whatever was done is told (Found.told). Pure: reads no
file, changes no network.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor

WRAPPERS: Final = frozenset(
    {"module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
)
"""Names that wrappers put in between, at any depth: DataParallel and averaged models, torch.compile, Fabric, FSDP,
activation checkpointing. A part of a network may be wrapped alone, and has the name in its midst."""
_DEEPEST: Final = 4
_CONVENTIONAL: Final = (
    frozenset(
        {"state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params"}
    )
    | WRAPPERS
)
_AVERAGED: Final = frozenset({"ema", "avg", "averaged", "average", "swa", "shadow"})
_COUNTER: Final = "num_batches_tracked"
"""Of a norm; not in files from before torch 0.4, and read in training alone."""
_EXTRA_STATE: Final = "_extra_state"
_SHOWN: Final = 5


@dataclass(frozen=True)
class Found:
    """A place in a checkpoint, and how its names become the network's.

    keys: of dicts, from the outside in. prefix: of the names there, with its dot. inner: what the network's own names
    have before them, with its dot. names: the network's name -> the file's. values: by the file's names.
    versions: of the modules there, as torch.save keeps them beside a state dict.
    dropped: names of wrappers that were taken out of the midst.
    unexpected, missing: the file's names that the network lacks, and the network's that the file lacks.
    """

    keys: tuple[str, ...]
    prefix: str
    inner: str
    names: Mapping[str, str]
    values: Mapping[str, Any] = field(repr=False)
    versions: Mapping[str, Any] | None = field(repr=False)
    dropped: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """How the user names it: `state_dict`, `ema.module`; empty for the file itself."""
        return ".".join((*self.keys, *filter(None, [self.prefix.removesuffix(".")])))

    def weights(self) -> dict[str, Any]:
        """The network's names with the file's values."""
        return {name: self.values[there] for name, there in self.names.items()}

    @property
    def outside(self) -> tuple[str, ...]:
        """Names beside the prefix, which are not used."""
        return tuple(name for name in self.values if not name.startswith(self.prefix))

    @property
    def averaged(self) -> bool:
        """Whether its place is called as an average of the weights over the training is."""
        return any(word in _AVERAGED for word in re.split(r"[._]", self.place.lower()))

    def told(self) -> str:
        """What was done to the names, in one line; empty where the file has the network's own."""
        parts = []
        if self.keys:
            parts.append(f"taken from {'.'.join(self.keys)!r}")
        if self.prefix:
            parts.append(f"the prefix {self.prefix!r} is dropped")
        if self.dropped:
            parts.append(f"{some(self.dropped)} is dropped from names")
        if self.inner:
            parts.append(f"the prefix {self.inner!r} of the network is put before the names")
        if self.outside:
            parts.append(f"not used, beside them: {some(self.outside)}")
        return ", ".join(parts)


def search(
    content: Mapping[Any, Any], wanted: Mapping[str, Any], tied: Mapping[str, frozenset[str]]
) -> list[Found]:
    """Every place where weights may be, those of the most fitting names first; `fits` says which are whole.

    wanted: the network's state dict. tied: a name -> all names of the same tensor, where there are several.
    """
    found = []
    inners = _common_prefixes([_plain(name) for name in wanted])
    for keys, values, versions in _dicts_of_tensors(content, wanted):
        for prefix, names in _nodes(values).items():
            # Half of the names is not the network, and keeps this linear in the size of the file.
            if prefix and 2 * len(names) < len(wanted):
                continue
            # What both have is neither dropped nor put before: a node beside it would be left out unseen.
            chosen = [inner for inner in inners if not (inner and _plain(f"{prefix}x").endswith(f"{inner}x"))]
            found += [
                _compared(Found(keys, prefix, inner, {}, values, versions), names, wanted, tied)
                for inner in chosen
            ]
    return sorted(
        found,
        key=lambda f: (
            -len(f.names),
            len(f.unexpected) + len(f.missing),
            len(f.dropped),  # a prefix that is told is plainer than names that are dropped
            len(f.keys),
            f.prefix,
            f.inner,
        ),
    )


def fits(found: Found, wanted: Mapping[str, Any]) -> bool:
    """Whether every name of the one side is on the other, in the same shape and kind."""
    return not (found.missing or found.unexpected or misfits(found, wanted)) and bool(found.names)


def choose(fitting: Sequence[Found]) -> tuple[Found | None, list[Found]]:
    """Which of the places that fit is meant, and the others that hold other numbers; None when nothing says.

    Averaged weights are those that are evaluated, and so those that are served; then comes what is called as it
    usually is.
    """
    different: list[Found] = []
    for one in fitting:
        if not any(_same(one, other) for other in different):
            different.append(one)
    ranks = [_rank(one) for one in different]
    best = [one for one, rank in zip(different, ranks, strict=True) if rank == min(ranks)]
    chosen = best[0] if len(best) == 1 else None
    return chosen, [one for one in different if one is not chosen]


def misfits(found: Found, wanted: Mapping[str, Any]) -> list[str]:
    """A line for each name on both sides whose tensors cannot be copied: all differences of shape or kind."""
    lines = []
    for name, there in found.weights().items():
        here = wanted[name]
        if not isinstance(here, Tensor) or not isinstance(there, Tensor):
            if type(here) is not type(there):
                lines.append(f"mis-typed: {name} is a {type(there).__name__}, not a {type(here).__name__}")
        elif here.shape != there.shape:
            lines.append(f"mis-shaped: {name} is {_shape(there)} in the file, {_shape(here)} in the network")
        elif (here.is_floating_point(), here.is_complex()) != (there.is_floating_point(), there.is_complex()):
            lines.append(f"mis-typed: {name} is {there.dtype} in the file, {here.dtype} in the network")
    return lines


def some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + rest


def _dicts_of_tensors(
    content: Mapping[Any, Any], wanted: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, ...], dict[str, Any], Mapping[str, Any] | None]]:
    """Every dict in content that has tensors under names, with its keys and versions; the outermost first."""
    extras = {name.rpartition(".")[2] for name in wanted if name.endswith(_EXTRA_STATE)}
    level: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), content)]
    for _ in range(_DEEPEST):
        below: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = []
        for keys, mapping in level:
            named = {name: value for name, value in mapping.items() if isinstance(name, str)}
            values = {
                name: value
                for name, value in named.items()
                if isinstance(value, Tensor) or name.rpartition(".")[2] in extras
            }
            if values:
                yield keys, values, getattr(mapping, "_metadata", None)
            below += [((*keys, n), v) for n, v in named.items() if isinstance(v, Mapping) and n not in values]
        level = below


def _nodes(names: Mapping[str, Any]) -> dict[str, list[str]]:
    """Prefix with its dot -> the names below it; "" has them all."""
    nodes: dict[str, list[str]] = {"": list(names)}
    for name in names:
        end = name.find(".")
        while end >= 0:
            nodes.setdefault(name[: end + 1], []).append(name)
            end = name.find(".", end + 1)
    return nodes


def _common_prefixes(names: Sequence[str]) -> list[str]:
    """ "" and every prefix with a dot at its end that all names have: those of wrappers around the network."""
    prefixes = [""]
    if not names:
        return prefixes
    first = names[0].split(".")
    for depth in range(1, len(first)):
        prefix = ".".join(first[:depth]) + "."
        if not all(name.startswith(prefix) for name in names):
            break
        prefixes.append(prefix)
    return prefixes


def _plain(name: str) -> str:
    *path, last = name.split(".")
    return ".".join([*(part for part in path if part not in WRAPPERS), last])


def _compared(
    place: Found, names: Sequence[str], wanted: Mapping[str, Any], tied: Mapping[str, frozenset[str]]
) -> Found:
    """The place with what its names and the network's have in common, and what not."""
    prefix, inner = place.prefix, place.inner
    here = {_plain(name).removeprefix(inner): name for name in wanted}
    there = {_plain(name.removeprefix(prefix)): name for name in names}
    if len(here) < len(wanted) or len(there) < len(names):  # a network whose own names are those of wrappers
        here = {name.removeprefix(inner): name for name in wanted}
        there = {name.removeprefix(prefix): name for name in names}
    both = {name: there[plain] for plain, name in here.items() if plain in there}
    missing = [name for plain, name in here.items() if plain not in there and not name.endswith(_COUNTER)]
    return replace(
        place,
        names=both,
        dropped=tuple(sorted(_wrappers([name.removeprefix(prefix) for name in names]) - _wrappers(wanted))),
        unexpected=tuple(name for plain, name in there.items() if plain not in here),
        missing=tuple(name for name in missing if tied.get(name, frozenset()).isdisjoint(both)),
    )


def _wrappers(names: Sequence[str] | Mapping[str, Any]) -> set[str]:
    return {part for name in names for part in name.split(".")[:-1] if part in WRAPPERS}


def _rank(found: Found) -> int:
    if found.averaged:
        return 0
    return 1 if all(part in _CONVENTIONAL for part in found.place.split(".") if part) else 2


def _same(one: Found, other: Found) -> bool:
    mine, others = one.weights(), other.weights()
    return mine.keys() == others.keys() and all(
        value is others[name]
        or (
            isinstance(value, Tensor)
            and isinstance(others[name], Tensor)
            and torch.equal(value, others[name])
        )
        for name, value in mine.items()
    )


def _shape(tensor: Tensor) -> str:
    return "(" + ", ".join(map(str, tensor.shape)) + ")"
