"""Whether a TorchScript module may write on the tensors it is given, or keep them, so that it must be given copies.

A batch's memory is read again: when it is run in pieces, after an error, after a worker's death. A module that works in
place would then find its own results there. And it is filled with the next batch: a module that kept it would find
others' rows. Decided by the graph alone; a module of which it cannot be decided is taken to do so.
"""

from collections.abc import Iterator
from typing import Any

import torch

_KNOWN = ("aten::", "prim::")
"""Namespaces whose operators state in their schemas what they write on; others are as right as their authors."""
_UNKNOWN = frozenset({"prim::CallFunction", "prim::CallMethod", "prim::rpc_async"})
"""What is called is not in the graph: inlining could not tell which it is."""
_KEEPS = "prim::SetAttr"


def may_write_or_keep(module: torch.jit.ScriptModule) -> bool:
    """Whether running the module may change its inputs, or use them later; True where that cannot be decided."""
    try:
        graph: Any = module.inlined_graph
    except (RuntimeError, AttributeError):  # no forward, or one that is no graph
        return True
    return any(_may(node) for node in _nodes(graph))


def _nodes(graph: Any) -> Iterator[Any]:
    """The nodes of a graph (or block), with those of its blocks and subgraphs."""
    for node in graph.nodes():
        yield node
        for block in node.blocks():
            yield from _nodes(block)
        for name in node.attributeNames():
            if node.kindOf(name) == "g":
                yield from _nodes(node.g(name))


def _may(node: Any) -> bool:
    kind = str(node.kind())
    # "(a!)" is how a schema says that an argument is written on. Appending to a list says so too: a copy for nothing.
    return kind == _KEEPS or kind in _UNKNOWN or not kind.startswith(_KNOWN) or "!" in str(node.schema())
