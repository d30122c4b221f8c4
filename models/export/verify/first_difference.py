"""Name the first layer whose output differs between two runs of a graph, when a gate fails.

    given   the values of every node of two runs of (nearly) one graph, by node name
    answer  the first node, in the order of the graph, that differs and whose difference reaches the output

A right fold changes values on purpose (a convolution then gives what its norm gave), but behind the fold the
values agree again. So only a node from which an unbroken chain of differing nodes leads to a differing output
counts. Nothing here runs on the way of a good export. Of a file: first_wrong_layer.py.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, fx

from foldserve.models.export.capture.graph_cleanup import where
from foldserve.models.export.network.difference import difference, scale_of
from foldserve.models.export.verify.float64_graph import Recorder, float64_values

Values = Mapping[str, Tensor]


def _apart(got: Tensor, want: Tensor) -> float:
    """By column, as the outputs are: difference.py."""
    return difference(got, want, scale_of([want], range(1, want.dim()))).max_rel


def first_difference(
    graph: fx.Graph,
    got: Values,
    want: Values,
    tolerance: float,
    apart: Callable[[Tensor, Tensor], float] = _apart,
) -> str | None:
    """The place of the first node that differs, or None when no chain of differences reaches the output.

    graph: the graph that got comes from; a node that is missing in one of the runs is passed over.
    apart: the measure, relative.
    """
    reaches: dict[fx.Node, bool] = {}
    first: fx.Node | None = None
    for node in reversed(list(graph.nodes)):
        if node.op == "output":
            reaches[node] = True
            continue
        below = any(reaches.get(user, False) for user in node.users)
        if node.name in got and node.name in want:
            reaches[node] = below and apart(got[node.name], want[node.name]) > tolerance
            if reaches[node]:
                first = node
        else:
            reaches[node] = below
    return where(first) if first is not None else None


def first_lost_digits(graph_module: fx.GraphModule, inputs: Sequence[Tensor], tolerance: float) -> str | None:
    """The place of the first node that float32 is off at, against float64."""
    recorder = Recorder(graph_module)
    with torch.no_grad():
        recorder.run(*(tensor.clone() for tensor in inputs))
    exact = float64_values(graph_module, inputs)
    return first_difference(graph_module.graph, recorder.values, exact, tolerance)


def first_row_mixing(graph_module: fx.GraphModule, inputs: Sequence[Tensor], tolerance: float) -> str | None:
    """The place of the first node whose first row changes when run alone, in float64."""
    together = float64_values(graph_module, inputs)
    alone = float64_values(graph_module, [t[:1] for t in inputs])
    rows = inputs[0].shape[0]
    first_rows = {
        name: value[:1] for name, value in together.items() if value.dim() and value.shape[0] == rows
    }
    comparable = {name: alone[name] for name in first_rows if alone[name].shape == first_rows[name].shape}
    with torch.no_grad():
        return first_difference(graph_module.graph, comparable, first_rows, tolerance)
