"""Proof that a file holds the very weights that it was written from, bit by bit.

No run shows a wrong weight that is multiplied by zeros alone: a channel that is never active on the inputs that were
tried hides the weights that read it. So the weights themselves are compared, wherever the file has them by the graph's
names. A writer that lays a weight out anew (a transposed matrix, the gates of an LSTM) gives it another name: such
weights are proved by what is computed with them (first_wrong_layer.py).
"""

import operator
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, fx

from foldserve.models.errors import ParityFailed
from foldserve.models.export.capture.graph_cleanup import where

WeightOf = Callable[[str], Tensor | None]
"""Name of a weight in the graph → what the file has by that name; None where it has none."""


def check_weights(label: str, weight_of: WeightOf, graph_module: fx.GraphModule) -> None:
    """Compare each weight of a file with that of graph_module. label: what the file is.

    Raises: ParityFailed, naming the first layer that reads a weight which differs.
    """
    for node in graph_module.graph.find_nodes(op="get_attr"):
        expected = operator.attrgetter(str(node.target))(graph_module)
        found = weight_of(str(node.target))
        if found is not None and not _same(found, expected):
            reader = next(iter(node.users), node)
            raise ParityFailed(
                f"the {label} holds another weight than the network: {where(reader)} reads {str(node.target)!r}. "
                "This is a fault of the writer; please report the network."
            )


def weights_of_torchscript(scripted: torch.jit.ScriptModule, names: Mapping[str, str]) -> WeightOf:
    """names: torchscript_writer.attribute_names()."""
    return lambda target: getattr(scripted, names[target], None)


def weights_of_onnx(path: Path) -> WeightOf:
    """Those of the file at path; all of them are in memory once."""
    model = onnx.load(path, load_external_data=False)
    weights = {weight.name: weight for weight in model.graph.initializer}

    def weight_of(target: str) -> Tensor | None:
        weight = weights.get(target)
        if weight is None:
            return None
        return torch.from_numpy(numpy_helper.to_array(weight, str(path.parent)).copy())

    return weight_of


def _same(found: Tensor, expected: Tensor) -> bool:
    """Whether both have the same numbers; NaN is NaN."""
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    if torch.equal(found, expected):
        return True
    return bool(((found == expected) | ((found != found) & (expected != expected))).all())
