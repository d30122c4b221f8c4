"""A second graph around the same weights.

Steps that edit a captured graph (the fold, the conversion to 16 bits, a run that shows every value) leave the one they
were given as it is. They never write to a tensor, so only the graph is copied: weights are shared, and a large network
lies in memory once.
"""

import copy

import torch
from torch import fx


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
        made = fx.GraphModule(holder, graph, class_name=class_name)
    made.eval()
    return made
