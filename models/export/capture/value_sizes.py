"""How many bytes each value of a captured graph takes, from a run of it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx


def bytes_of_values(graph_module: fx.GraphModule, inputs: Sequence[Tensor]) -> dict[str, int]:
    """The bytes of what each operator gives on inputs, by node name, in the order of the graph. Runs it once."""
    sizes = sizes_of_values(graph_module, inputs)
    return {node.name: size for node, size in sizes.items() if node.op == "call_function"}


def sizes_of_values(graph_module: fx.GraphModule, inputs: Sequence[Tensor]) -> dict[fx.Node, int]:
    """The bytes of what each node gives on inputs. Runs the graph once."""
    sizes = _Sizes(graph_module)
    with torch.no_grad():
        sizes.run(*(t.clone() for t in inputs))
    return sizes.of


class _Sizes(fx.Interpreter):
    """Runs a graph and notes the bytes of what each node gives."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.of: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.of[n] = bytes_of(value)
        return value


def bytes_of(value: Any) -> int:
    """Of a tensor, or of all in a list or tuple of them; 0 for anything else."""
    if isinstance(value, list | tuple):
        return sum(bytes_of(item) for item in value)
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0
