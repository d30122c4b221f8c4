"""A TorchScript file as what it computes on the way: its values by the names of the graph that it was written from."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from foldserve.models.errors import FormNotWritten
from foldserve.models.export.process.float64_mode import float64_arithmetic, widened
from foldserve.models.export.process.suppress_output import suppress_output
from foldserve.models.export.writers.reasons import reason
from foldserve.models.export.writers.torchscript_source import LOCAL

# What TorchScript makes of a local name of the source when it reads it.
_LOCAL = re.compile(rf"{LOCAL}(.+)\.\d+")

# c10::ScalarType::Double
_FLOAT64 = 7


class TorchScriptValues:
    """A file's values in float64; first_wrong_layer.FileValues."""

    def __init__(self, scripted: torch.jit.ScriptModule) -> None:
        self._scripted = scripted
        self._nodes = frozenset(_found(scripted.graph))

    @property
    def nodes(self) -> Collection[str]:
        return self._nodes

    def fetch(
        self, nodes: Sequence[str], inputs: tuple[Tensor, ...], known: Mapping[str, Tensor]
    ) -> Sequence[Tensor]:
        """Runs the part of the file between known and nodes."""
        graph = self._scripted.graph.copy()
        found = _found(graph)
        for name in known:
            found[name].replaceAllUsesWith(graph.addInput().setType(torch._C.TensorType.get()))
        for _ in list(graph.outputs()):
            graph.eraseOutput(0)
        for node in nodes:
            graph.registerOutput(found[node])
        graph.makeMultiOutputIntoTuple()
        torch._C._jit_pass_dce(graph)
        _widen_weights(graph, self._scripted)
        run = torch._C._create_function_from_graph("values", graph)
        try:
            with suppress_output(), float64_arithmetic():
                values = run(self._scripted, *widened(inputs), *known.values())
        except RuntimeError as error:
            raise FormNotWritten(
                f"the layers of the TorchScript file cannot be looked at: {reason(error)}"
            ) from error
        return (values,) if isinstance(values, Tensor) else values


def _widen_weights(graph: Any, scripted: torch.jit.ScriptModule) -> None:
    """Let each weight be read in float64, where it is read: one of them at a time is in memory so."""
    for node in list(graph.nodes()):
        if node.kind() != "prim::GetAttr" or not getattr(scripted, node.s("name")).is_floating_point():
            continue
        for use in node.output().uses():
            graph.setInsertPoint(use.user)
            # Tensor.to(dtype, non_blocking, copy, memory_format), a type by its number
            given = [graph.insertConstant(value) for value in (_FLOAT64, False, False, None)]
            wide = graph.insertNode(graph.create("aten::to", [node.output(), *given], 1))
            use.user.replaceInput(use.offset, wide.output())


def _found(graph: Any) -> dict[str, Any]:
    """The tensors of the file, by the name of their node."""
    values = [value for node in graph.nodes() for value in node.outputs()]
    named = [(_LOCAL.fullmatch(value.debugName()), value) for value in values]
    return {
        match[1]: value
        for match, value in named
        if match is not None and isinstance(value.type(), torch._C.TensorType)
    }
