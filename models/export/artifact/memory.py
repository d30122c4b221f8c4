"""How much memory a network needs: of its weights, and of one row on its way through.

    weights_bytes  every weight that the written graph reads, once
    row_bytes      the peak, over the operators in the file's order, of the values that are alive for a batch of one
                   row: the inputs and outputs from first to last, every other value from the operator that makes it to
                   the last one that reads it

A batch of n rows needs at most weights_bytes + n * row_bytes, and what the runtime takes for itself on top (the
workspaces of convolutions, fragments). A reshape is counted as sharing its input's memory, as in both runtimes;
every other operator has its result in memory of its own. Dynamic dims have the example's size.
"""

import operator

from torch import fx
from torch._ops import OpOverload

from foldserve.models.export.capture.capture import CapturedGraph
from foldserve.models.export.capture.value_sizes import bytes_of, sizes_of_values
from foldserve.service.artifact.manifest import Memory

# Operators whose result is their first input under another shape.
_RESHAPES = frozenset(
    {"view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "alias", "detach"}
)


def measure_memory(captured: CapturedGraph) -> Memory:
    """The memory of the graph as it is written. Runs it once, on the first row of its example, for the sizes; on the
    whole example where the rows belong together, and row_bytes is what a request of that size takes.
    """
    sizes = sizes_of_values(
        captured.graph_module, [t if captured.together else t[:1] for t in captured.example_inputs]
    )
    targets = {str(node.target) for node in captured.graph_module.graph.nodes if node.op == "get_attr"}
    weights = sum(bytes_of(operator.attrgetter(target)(captured.graph_module)) for target in targets)
    return Memory(weights_bytes=weights, row_bytes=_peak(captured.graph_module.graph, sizes))


def _peak(graph: fx.Graph, sizes: dict[fx.Node, int]) -> int:
    """The largest sum of the values alive at one operator."""
    nodes = list(graph.nodes)
    at = {node: index for index, node in enumerate(nodes)}
    owners = {node: _owner(node) for node in nodes}
    last: dict[fx.Node, int] = {}
    for node in nodes:
        last[owners[node]] = max(last.get(owners[node], 0), at[node])
        for source in node.all_input_nodes:
            last[owners[source]] = max(last[owners[source]], at[node])
    copies = 0
    for output in graph.output_node().all_input_nodes:
        last[owners[output]] = len(nodes)
        if (
            owners[output].op != "call_function"
        ):  # an input or a weight given back: the answer is a copy of it
            copies += sizes[output]
    changes = [0] * (len(nodes) + 2)
    for node in nodes:
        if owners[node] is not node or node.op not in {"placeholder", "call_function"}:
            continue
        begins, ends = (0, len(nodes)) if node.op == "placeholder" else (at[node], last[node])
        changes[begins] += sizes[node]
        changes[ends + 1] -= sizes[node]
    alive = peak = 0
    for change in changes:
        alive += change
        peak = max(peak, alive)
    return peak + copies


def _owner(node: fx.Node) -> fx.Node:
    """The node whose memory node's value lies in."""
    while node.op == "call_function" and _shares(node):
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node = source
    return node


def _shares(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node)
    return isinstance(node.target, OpOverload) and node.target._opname in _RESHAPES
