"""Write a captured graph as an ONNX file, weights inside.

torch.onnx captures the graph module again (about half of its time) and translates it; its optimiser folds
constants and may fold a norm right behind a convolution, which is right where it acts (verify.py looks). What
is left in the file is then made tidy: no stack traces with the paths of the exporting machine, inputs and
outputs named as in the manifest, dim 0 called "rows".
"""

import copy
import operator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, fx

from models.errors import NotCapturable
from models.export.capture import CapturedGraph
from models.export.onnx_rnn import TRANSLATIONS
from models.export.onnx_stream import check_onnx, write_onnx
from models.export.quiet import quiet
from models.recurrent import symbolic_length
from service.onnx_runtime import onnxruntime

# The operator set that torch 2.13's translations are written in: no version conversion, which could go wrong,
# takes place, and every ONNX Runtime since 1.14 reads it.
DEFAULT_OPSET = 18
_OLDEST_OPSET = 18

# ONNX Runtime 1.31 crashes (SIGSEGV) while it opens an fp16 file on the CPU that has a Transpose of the first two
# dims in front of a product with a weight, as in nn.MultiheadAttention: this fusion and its NchwcTransformer do not
# go together. Without the fusion transformers are no slower there.
_CRASHING_FUSION = "MatmulTransposeFusion"

# A protobuf message ends at 2 GiB; a little is left for the graph around the weights.
_MOST_WEIGHT_BYTES = 2**31 - 2**24


def to_onnx(captured: CapturedGraph, opset: int | None = None) -> onnx.ModelProto:
    """Return the checked ONNX model of captured, with its input and output names.

    Raises: NotCapturable when torch.onnx knows no translation of an operator, when the weights are 2 GiB or
    more, or when opset is older than 18.
    """
    version = DEFAULT_OPSET if opset is None else opset
    if version < _OLDEST_OPSET:
        raise NotCapturable(f"opset is {version}; torch.onnx writes {_OLDEST_OPSET} or newer")
    _refuse_too_large(captured.graph_module)
    try:
        with quiet(), torch.no_grad(), symbolic_length():
            program: Any = torch.onnx.export(
                _with_weights_apart(captured),
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
    except Exception as error:
        raise NotCapturable(
            f"torch.onnx cannot write the network: {_reason(error)}. Write that step with other torch "
            "functions."
        ) from error
    _tidy(model)
    try:
        check_onnx(model)
    except Exception as error:
        raise NotCapturable(f"torch.onnx wrote a model that onnx.checker refuses: {error}") from error
    return model


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
    """Write model to path; the same model gives the same bytes."""
    with path.open("wb") as file:
        write_onnx(model, file)


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the default operator set that model uses."""
    return next(int(entry.version) for entry in model.opset_import if entry.domain in {"", "ai.onnx"})


def load_onnx(path: Path) -> onnxruntime.InferenceSession:
    """Open the file as a server on a CPU does. Raises: NotCapturable when ONNX Runtime does not take it."""
    return _session(str(path))


def onnx_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Open a model that is in no file."""
    return _session(model.SerializeToString())


def _session(source: str | bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("optimization.disable_specified_optimizers", _CRASHING_FUSION)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise NotCapturable(f"ONNX Runtime cannot load the model that torch.onnx wrote: {error}") from error


def run_onnx(session: onnxruntime.InferenceSession, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Run on flat inputs in the order of the signature; a tuple of outputs."""
    feeds = {
        i.name: np.ascontiguousarray(t.numpy()) for i, t in zip(session.get_inputs(), inputs, strict=True)
    }
    return tuple(torch.from_numpy(np.asarray(array)) for array in session.run(None, feeds))


def _refuse_too_large(graph_module: fx.GraphModule) -> None:
    tensors = [*graph_module.parameters(), *graph_module.buffers()]
    size = sum(t.numel() * t.element_size() for t in tensors)
    if size > _MOST_WEIGHT_BYTES:
        raise NotCapturable(
            f"the weights are {size / 2**30:.2f} GiB; an ONNX file with its weights inside ends at 2 GiB, "
            "and weights beside the file are not written here"
        )


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


def _reason(error: BaseException) -> str:
    """The last line of the innermost cause: torch.onnx wraps what went wrong in pages of advice."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0] if lines else ''}"
