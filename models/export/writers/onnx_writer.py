"""Write a captured graph as an ONNX file, weights inside or, beyond 2 GiB, beside it.

torch.onnx captures the graph module again (about half of its time) and translates it; its optimiser folds
constants and may fold a norm right behind a convolution, which is right where it acts (parity.py looks). What
is left in the file is then made tidy: no stack traces with the paths of the exporting machine, inputs and
outputs named as in the manifest, dim 0 called "rows".
"""

import copy
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from foldserve.models.errors import FormNotWritten, NotCapturable
from foldserve.models.export.capture.capture import CapturedGraph
from foldserve.models.export.capture.graph_copy import with_code
from foldserve.models.export.capture.tracing.history import forget_last_model, forget_last_trace
from foldserve.models.export.capture.tracing.linear_lookups import linear_lookups
from foldserve.models.export.capture.tracing.unguarded import without_guards
from foldserve.models.export.network.refusals import node_line
from foldserve.models.export.process.suppress_output import suppress_output
from foldserve.models.export.writers.onnx_names import note_names, value_names
from foldserve.models.export.writers.onnx_rewrites import rewritten
from foldserve.models.export.writers.onnx_rnn import TRANSLATIONS
from foldserve.models.export.writers.onnx_stream import check_onnx, write_onnx
from foldserve.models.export.writers.reasons import causes, innermost, reason
from foldserve.models.recurrent import symbolic_length
from foldserve.service.backends.onnxruntime.library import onnxruntime

# The operator set that torch 2.13's translations are written in: no version conversion, which could go wrong,
# takes place, and every ONNX Runtime since 1.14 reads it.
DEFAULT_OPSET = 18
_OLDEST_OPSET = 18

# ONNX Runtime 1.31 crashes (SIGSEGV) while it opens an fp16 file on the CPU that has a Transpose of the first two
# dims in front of a product with a weight, as in nn.MultiheadAttention: this fusion and its NchwcTransformer do not
# go together. Without the fusion transformers are no slower there.
_CRASHING_FUSION = "MatmulTransposeFusion"


@dataclass(frozen=True)
class OnnxForm:
    """A graph as an ONNX model. values: node of the graph → the name of its value, of all that the model has."""

    model: onnx.ModelProto
    values: Mapping[str, str]


def to_onnx(captured: CapturedGraph, opset: int | None = None) -> OnnxForm:
    """Return the checked ONNX form of captured, with its input and output names.

    Raises: FormNotWritten when torch.onnx cannot write the network, as for an operator without a translation, or
    writes what onnx.checker refuses; NotCapturable when opset is older than 18; OSError and MemoryError.
    """
    version = DEFAULT_OPSET if opset is None else opset
    check_opset(version)
    graph_module = with_code(rewritten(_with_weights_apart(captured)))
    note_names(graph_module)
    try:
        with suppress_output(), torch.no_grad(), symbolic_length(), linear_lookups(), without_guards():
            program: Any = torch.onnx.export(
                graph_module,
                captured.example_inputs,
                dynamic_shapes=captured.dynamic_shapes,
                input_names=list(captured.input_names),
                output_names=list(captured.output_names),
                opset_version=version,
                dynamo=True,
                custom_translation_table=TRANSLATIONS,
                verbose=False,
            )
            model: onnx.ModelProto = program.model_proto
        made, output_names = program.exported_program.graph, captured.output_names
        values = value_names(captured.graph_module.graph, made, model, output_names)
        del program, made
        forget_last_trace()
        forget_last_model()
    except Exception as error:
        cause = innermost(error)
        if isinstance(cause, OSError | MemoryError):  # of the machine, and not of the network
            raise cause from error
        place = _place(error, captured.graph_module.graph)
        raise FormNotWritten(f"torch.onnx cannot write the network{place}: {reason(cause)}") from error
    _tidy(model)
    try:
        check_onnx(model)
    except Exception as error:
        raise FormNotWritten(
            f"torch.onnx wrote a model that onnx.checker refuses: {reason(error)}"
        ) from error
    return OnnxForm(model, values)


def check_opset(opset: object) -> None:
    """Raises: NotCapturable when it is no operator set that torch.onnx and onnx know."""
    newest = onnx.defs.onnx_opset_version()
    if isinstance(opset, bool) or not isinstance(opset, int) or not _OLDEST_OPSET <= opset <= newest:
        raise NotCapturable(
            f"opset is {opset!r}; torch.onnx writes {_OLDEST_OPSET} or newer, here up to {newest}"
        )


_UNWRITTEN = re.compile(r"node %(\w+).*?target=torch\.ops\.\w+\.(\w+)")


def _place(error: BaseException, graph: fx.Graph) -> str:
    """The user's line of the operator that torch.onnx names in error; "" where it names none of this graph.

    torch.onnx captures the graph again, which may take an operator apart: `linalg_inv_ex` was `linalg_inv`. So of the
    nodes whose operator's name is part of the one that it names, the line is that of the likest, by its own name too.
    """
    found = next((f for e in causes(error) if (f := _UNWRITTEN.search(str(e)))), None)
    if found is None:
        return ""
    name, operator_name = found.groups()
    like = [node for node in graph.nodes if _operator_name(node) and _operator_name(node) in operator_name]
    likest = max(like, key=lambda node: (len(_operator_name(node)), node.name == name), default=None)
    return "" if likest is None else node_line(likest)


def _operator_name(node: fx.Node) -> str:
    """`linalg_inv` of aten.linalg_inv.default; "" of what is no operator."""
    return node.target._opname if isinstance(node.target, OpOverload) else ""


def _with_weights_apart(captured: CapturedGraph) -> fx.GraphModule:
    """The graph of captured, no weight called as an input or an output: all are values of one file, by name."""
    graph_module = captured.graph_module
    taken = {*captured.input_names, *captured.output_names}
    weights = [node for node in graph_module.graph.nodes if node.op == "get_attr"]
    if taken.isdisjoint(str(node.target) for node in weights):
        return graph_module
    taken |= {str(node.target) for node in weights}
    apart = fx.GraphModule(graph_module, copy.deepcopy(graph_module.graph))
    for node in apart.graph.find_nodes(op="get_attr"):
        if node.target in captured.input_names + captured.output_names:
            name = f"weight_{str(node.target).replace('.', '_')}"
            while name in taken or hasattr(apart, name):
                name += "_"
            apart.register_buffer(name, operator.attrgetter(str(node.target))(graph_module).detach())
            node.target = name
    apart.recompile()
    return apart


def save_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write model to path; the same model gives the same bytes. Raises: OSError."""
    write_onnx(model, path)


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the default operator set that model uses."""
    return next(int(entry.version) for entry in model.opset_import if entry.domain in {"", "ai.onnx"})


def load_onnx(path: Path, *, as_written: bool = False) -> onnxruntime.InferenceSession:
    """Open the file as a server on a CPU does, or as_written: one operator after the other, nothing fused or packed.

    Raises: FormNotWritten when ONNX Runtime does not take it.
    """
    options = onnxruntime.SessionOptions()
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("optimization.disable_specified_optimizers", _CRASHING_FUSION)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        text = reason(error).replace(str(path), path.name)  # the manifest has it: no path of this machine
        raise FormNotWritten(f"ONNX Runtime cannot load the model that torch.onnx wrote: {text}") from error


def run_onnx(
    session: onnxruntime.InferenceSession, inputs: tuple[Tensor, ...], names: Sequence[str] | None = None
) -> tuple[Tensor, ...]:
    """Run on flat inputs in the order of the signature; a tuple of outputs, all or those of names."""
    feeds = {
        i.name: np.ascontiguousarray(t.numpy()) for i, t in zip(session.get_inputs(), inputs, strict=True)
    }
    return tuple(torch.from_numpy(np.asarray(array)) for array in session.run(names, feeds))


def _tidy(model: onnx.ModelProto) -> None:
    model.producer_name = "foldserve"
    model.producer_version = ""
    model.doc_string = ""
    del model.metadata_props[:]
    _tidy_graph(model.graph)
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        for node in function.node:
            _tidy_node(node)


def _tidy_graph(graph: onnx.GraphProto) -> None:
    graph.name = "network"
    graph.doc_string = ""
    del graph.metadata_props[:]
    for part in (graph.initializer, graph.input, graph.output, graph.value_info):
        for item in part:
            item.doc_string = ""
            del item.metadata_props[:]
    for node in graph.node:
        _tidy_node(node)


def _tidy_node(node: onnx.NodeProto) -> None:
    node.doc_string = ""
    del node.metadata_props[:]
    for attribute in node.attribute:
        if attribute.HasField("g"):
            _tidy_graph(attribute.g)
