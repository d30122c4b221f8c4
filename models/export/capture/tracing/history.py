"""Drop what torch keeps of how a graph came about, which nobody reads: the graph, and what is made of it, stay small.

Beside each node torch notes from which nodes of which earlier graphs it comes, and copies the whole list at every pass
over the graph. It keeps the nodes of the last graph that it traced, with the dozens of operations on sizes that each
had, and the rules that rewrite ONNX keep the last model that they were tried on, weights and all. Of 1,000 layers these
are nine objects in ten, at which every collection of garbage looks (tidying.py).
"""

import onnxscript.rewriter
from torch import fx
from torch.fx.experimental import proxy_tensor

# The value, its place in the network, and the user's line. All else is of torch's own passes.
_READ = frozenset({"val", "nn_module_stack", "stack_trace"})


def without_origins(graph: fx.Graph) -> None:
    """Drop the notes on earlier graphs, before a pass of torch over graph."""
    for node in graph.nodes:
        node.meta.pop("from_node", None)


def without_history(graph: fx.Graph) -> None:
    """Drop all that is noted beside the nodes of graph and read by no step of an export."""
    for node in graph.nodes:
        node.meta = {key: value for key, value in node.meta.items() if key in _READ}


def forget_last_trace() -> None:
    """Let go of the graph that torch traced last; it lets go of it itself when it traces the next one."""
    getattr(proxy_tensor, "_FAKE_TENSOR_ID_TO_PROXY_MAP_FOR_EXPORT", {}).clear()


def forget_last_model() -> None:
    """Let go of the ONNX model that was rewritten last; each rule notes the next one that it is tried on."""
    for rule in getattr(onnxscript.rewriter, "_DEFAULT_REWRITE_RULES", ()):
        noted = vars(getattr(rule, "_matcher", rule))
        for name in _OF_ONE_MODEL & noted.keys():
            noted[name] = None


# Of SimplePatternMatcher, set by each match.
_OF_ONE_MODEL = frozenset({"_graph", "_match", "_current_node"})
