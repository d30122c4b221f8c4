"""A second graph around the same weights.

Steps that edit a captured graph (the fold, the conversion to 16 bits, a run that shows every value) leave the one they
were given as it is. They never write to a tensor, so only the graph is copied: weights are shared, and a large network
lies in memory once. Python code is made of a graph when it is called for the first time: of 1,000 layers that takes
0.2 s, and most graphs are only edited, or run by an interpreter.
"""

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import fx
from torch.fx._lazy_graph_module import _LazyGraphModule


def copied(graph_module: fx.GraphModule) -> fx.GraphModule:
    """A copy of graph_module, of its nodes and the modules that hold its weights; every tensor is shared."""
    return around(graph_module, copy.deepcopy(graph_module.graph), type(graph_module).__name__)


def without_unused(graph_module: fx.GraphModule) -> fx.GraphModule:
    """The same graph around only the weights that it reads: folded or converted ones have replaced others."""
    graph_module.graph.eliminate_dead_code()
    for node in list(graph_module.graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph_module.graph.erase_node(node)
    return around(graph_module, graph_module.graph, "FoldedNetwork")


def around(holder: fx.GraphModule, graph: fx.Graph, class_name: str) -> fx.GraphModule:
    """A graph module in eval mode of graph, with the tensors of holder that graph names."""
    with torch.no_grad():
        made = _LazyGraphModule(holder, graph, class_name=class_name)
    made.eval()
    return made


def with_code(graph_module: fx.GraphModule) -> fx.GraphModule:
    """graph_module itself, its Python code made: for those who look at its signature before they call it."""
    _LazyGraphModule.force_recompile(graph_module)
    return graph_module


@contextlib.contextmanager
def without_code() -> Iterator[None]:
    """Within, torch makes graph modules without Python code: for one of which only the graph is wanted."""
    original = fx.GraphModule.recompile
    fx.GraphModule.recompile = _say_that_there_is_no_code  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        fx.GraphModule.recompile = original  # type: ignore[method-assign]


def _say_that_there_is_no_code(graph_module: fx.GraphModule) -> None:
    graph_module._code = ""
