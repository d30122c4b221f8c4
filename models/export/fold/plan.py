"""A plan: the edits that fold one norm, collected first and applied whole, or not at all.

An edit never writes into an existing tensor: it makes new constants, so that tied and reused weights, weights
that are also outputs, and buffers read elsewhere keep their values. A node is edited at most once per plan,
because an edit is computed from the node as it was. This is the only file of the fold, beside
Constants.materialise, that changes a graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode
from torch.fx.node import map_aggregate

from foldserve.models.export.fold.exact import Lost, keep


class NotFoldable(Exception):
    """A fold that would not be exact, or not possible; str() is the reason that the report lists."""


@dataclass(frozen=True, eq=False)
class NewConstant:
    """A tensor to be stored in the graph module; name is the stem of its buffer's name.

    lost: what value, a rounded number, has lost (exact.py); None for nothing.
    """

    value: Tensor
    name: str
    lost: Lost | None = None


@dataclass(frozen=True, eq=False)
class Rewrite:
    """Let node call target with these arguments, some of them NewConstant. Its shape and dtype stay."""

    node: fx.Node
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Bypass:
    """Whoever reads node reads by instead (by may itself be bypassed in the same plan)."""

    node: fx.Node
    by: fx.Node


@dataclass(frozen=True, eq=False)
class Substitute:
    """reader, and nobody else, takes a new constant in place of node."""

    reader: fx.Node
    node: fx.Node
    constant: NewConstant


Edit = Rewrite | Bypass | Substitute


def _edited(edit: Edit) -> object:
    return (edit.reader, edit.node) if isinstance(edit, Substitute) else edit.node


@dataclass(frozen=True)
class Plan:
    """Edits so far. Immutable, so that a search may try an alternative and fall back."""

    edits: tuple[Edit, ...] = ()

    def plus(self, edits: Iterable[Edit]) -> Plan:
        """This plan and edits. Raises NotFoldable when a node would be edited twice."""
        done = {_edited(edit) for edit in self.edits}
        added = tuple(edits)
        for edit in added:
            if _edited(edit) in done:
                raise NotFoldable(f"{edit.node.name} would have to change in two ways at once")
            done.add(_edited(edit))
        return Plan(self.edits + added)

    def replaced_inputs(self) -> set[fx.Node]:
        """The nodes that some rewritten node takes today and will not take any more."""
        gone: set[fx.Node] = set()
        for edit in self.edits:
            if isinstance(edit, Rewrite):
                leaves = torch.utils._pytree.tree_leaves((edit.args, edit.kwargs))
                gone.update(
                    node for node in edit.node.all_input_nodes if not any(leaf is node for leaf in leaves)
                )
        return gone

    def copies_shared(self) -> bool:
        """True when a constant that others read too would be stored a second time in a changed form."""
        return any(node.op == "get_attr" and len(node.users) > 1 for node in self.replaced_inputs())

    def apply(self, gm: fx.GraphModule) -> None:
        """Carry out every edit, and drop what nobody reads any more."""
        gone = self.replaced_inputs() | {edit.node for edit in self.edits}
        for edit in self.edits:
            if isinstance(edit, Rewrite):
                _rewrite(gm, edit)
        for edit in self.edits:
            if isinstance(edit, Substitute):
                with gm.graph.inserting_before(edit.reader):
                    edit.reader.replace_input_with(edit.node, insert_constant(gm, edit.constant))
        bypassed = {edit.node: edit.by for edit in self.edits if isinstance(edit, Bypass)}
        for node, by in bypassed.items():
            while by in bypassed:
                by = bypassed[by]
            node.replace_all_uses_with(by)
        _erase_unread(gm, gone)


def _rewrite(gm: fx.GraphModule, edit: Rewrite) -> None:
    with gm.graph.inserting_before(edit.node):

        def place(leaf: Any) -> Any:
            return insert_constant(gm, leaf) if isinstance(leaf, NewConstant) else leaf

        args = map_aggregate(edit.args, place)
        kwargs = map_aggregate(edit.kwargs, place)
    edit.node.target = edit.target
    edit.node.args = args
    edit.node.kwargs = kwargs


def _erase_unread(gm: fx.GraphModule, start: set[fx.Node]) -> None:
    """Erase the nodes of start that nobody reads, then what only they read, without a walk over the graph."""
    todo = list(start)
    while todo:
        node = todo.pop()
        if node.op not in ("call_function", "get_attr") or node.users or node._erased or node.is_impure():
            continue
        todo.extend(node.all_input_nodes)
        gm.graph.erase_node(node)


def insert_constant(gm: fx.GraphModule, constant: NewConstant) -> fx.Node:
    """A get_attr node, at the graph's insertion point, of a new buffer that holds constant."""
    stem = "".join(c if c.isalnum() else "_" for c in constant.name)
    number = 0
    while hasattr(gm, f"{stem}_folded_{number}"):
        number += 1
    name = f"{stem}_folded_{number}"
    gm.register_buffer(name, constant.value)
    node = gm.graph.get_attr(name)
    node.meta["val"] = _fake(gm, constant.value)
    keep(node, constant.lost)
    return node


def _fake(gm: fx.GraphModule, value: Tensor) -> Tensor:
    for node in gm.graph.nodes:
        if isinstance(node.meta.get("val"), Tensor):
            mode = detect_fake_mode([node.meta["val"]])
            if mode is not None:
                return mode.from_tensor(value, static_shapes=True)
            break
    return torch.empty_like(value, device="meta")
