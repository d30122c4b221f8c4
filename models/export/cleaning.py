"""Make the raw graph of torch.export one that can be folded, written and served.

    before  placeholders, weights, assertions, writes to buffers, norms that use the batch's own statistics
    after   flat tensors in, flat tuple of tensors out; no assertion, write or such norm; tied weights once

Refused here, with the reason: outputs that are no tensors or have no rows, random numbers, state that one
request would leave for the next, operators that a file of ATen or ONNX operators cannot hold.
"""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from models.errors import NotCapturable
from models.export.datatypes import OIP_WORDS
from models.export.training_norms import spell_out_training_norms

aten = torch.ops.aten

# Checks that torch.export writes down for itself; the server checks shapes against the signature instead.
_ASSERTIONS = frozenset(
    {
        "_assert_scalar",
        "_assert_async",
        "_assert_tensor_metadata",
        "sym_constrain_range",
        "sym_constrain_range_for_size",
        "_functional_assert_async",
        "_functional_sym_constrain_range",
        "_functional_sym_constrain_range_for_size",
    }
)
# Python's own operators on sizes, which torch.export leaves as plain functions.
_MODULES_OF_SIZE_ARITHMETIC = frozenset({"_operator", "math", "builtins"})
_SIZE_FUNCTIONS = frozenset(
    {
        torch.sym_float,
        torch.sym_int,
        torch.sym_ite,
        torch.sym_max,
        torch.sym_min,
        torch.sym_not,
        torch.sym_sqrt,
        torch.sym_sum,
    }
)


def clean_graph(
    raw: fx.GraphModule, program: torch.export.ExportedProgram, input_names: Sequence[str]
) -> fx.GraphModule:
    """Return the clean graph module. raw is used up.

    Raises: NotCapturable, naming the layer, when the network cannot be served row by row from a file.
    """
    graph = raw.graph
    graph.set_codegen(fx.graph.CodeGen())
    _drop_assertions_and_writes(graph)
    _merge_tied_weights(raw)
    spell_out_training_norms(graph)
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    _refuse_state(graph, program)
    for node in graph.nodes:
        if node.op in {"call_function", "call_method", "call_module"}:
            _refuse_operator(node)
    _refuse_outputs(graph, input_names)
    clean = fx.GraphModule(raw, graph, class_name="CapturedNetwork")
    clean.eval()
    clean.graph.lint()
    return clean


def where(node: fx.Node) -> str:
    """The place of a node in the user's network: `layer1.0.conv2 (aten.conv2d)`."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next((str(entry[0]) for entry in reversed(list(stack.values())) if entry[0]), "")
    name = str(node.target).removeprefix("torch.ops.").rpartition(".")[0] or str(node.target)
    return f"{path or node.name} ({name})" if node.op == "call_function" else (path or node.name)


def _drop_assertions_and_writes(graph: fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if node.op == "call_module" and str(node.target).startswith("_guards"):
            graph.erase_node(node)
        elif not isinstance(node.target, OpOverload):
            continue
        elif node.target._schema.name.split("::")[1] in _ASSERTIONS:
            graph.erase_node(node)
        elif node.target is aten.copy_.default and node.args[0].op in {"get_attr", "placeholder"}:
            # A write to a buffer or to the caller's input, behind everything computed; see _refuse_state.
            node.replace_all_uses_with(node.args[1])
            graph.erase_node(node)


def _merge_tied_weights(module: fx.GraphModule) -> None:
    """One get_attr node per tensor, so that tied weights stand once in the files."""
    first: dict[tuple[Any, ...], fx.Node] = {}
    for node in list(module.graph.nodes):
        if node.op != "get_attr":
            continue
        value = operator.attrgetter(node.target)(module)
        if not isinstance(value, torch.Tensor) or value.numel() == 0:
            continue
        key = (value.data_ptr(), tuple(value.shape), value.stride(), value.dtype)
        keeper = first.setdefault(key, node)
        if keeper is not node:
            node.replace_all_uses_with(keeper)
            module.graph.erase_node(node)


def _refuse_state(graph: fx.Graph, program: torch.export.ExportedProgram) -> None:
    written = set(program.graph_signature.buffers_to_mutate.values())
    for node in graph.nodes:
        if node.op == "get_attr" and node.target in written:
            raise NotCapturable(
                f"forward writes to the buffer {node.target!r} and its answers depend on it, so one request "
                "would change the next one's answer; expected a network without state between calls. Pass "
                "the state in as an input and return it as an output."
            )


def _refuse_operator(node: fx.Node) -> None:
    target = node.target
    if isinstance(target, OpOverload):
        if target.namespace not in {"aten", "prims"}:
            raise NotCapturable(
                f"{where(node)} is the custom operator {target._schema.name}: a TorchScript file that plain "
                "torch.jit.load reads, and ONNX Runtime, have only ATen and ONNX operators. Write it with "
                "torch functions."
            )
        if torch.Tag.nondeterministic_seeded in target.tags and _draws(node, target):
            raise NotCapturable(
                f"{where(node)} draws random numbers, also in eval mode: the answers cannot be compared or "
                "repeated. Use self.training for dropout, or pass the noise in as an input."
            )
        if target._schema.is_mutable:
            raise NotCapturable(
                f"{where(node)} writes in place in a way that torch.export could not dissolve"
            )
    elif (
        node.op != "call_function"
        or isinstance(target, torch._ops.HigherOrderOperator)
        or not _is_size_arithmetic(target)
    ):
        raise NotCapturable(
            f"{where(node)} calls {getattr(target, '__name__', target)}, which holds a graph of its own or "
            "is no operator; torch.cond, while_loop, scan and custom autograd cannot be written to both "
            "files. Write it with torch.where or masks."
        )


def _is_size_arithmetic(target: Any) -> bool:
    if target in _SIZE_FUNCTIONS:
        return True
    return getattr(target, "__module__", None) in _MODULES_OF_SIZE_ARITHMETIC


def _draws(node: fx.Node, target: OpOverload) -> bool:
    """Whether an operator that may draw random numbers does: dropout, attention and lstm have a switch."""
    for position, argument in enumerate(target._schema.arguments):
        if argument.name in {"train", "training", "dropout_p"}:
            value = (
                node.args[position]
                if position < len(node.args)
                else node.kwargs.get(argument.name, argument.default_value)
            )
            return bool(value)
    return True


def _refuse_outputs(graph: fx.Graph, input_names: Sequence[str]) -> None:
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    rows: Any = placeholders[0].meta["val"].shape[0]
    if isinstance(rows, int):
        raise NotCapturable(
            f"the network fixes the number of rows of {input_names[0]!r} at {rows}; use x.shape[0] instead "
            "of a number"
        )
    # Each input has a symbol of its own for its rows, unless the network needs them to be as many.
    every_rows = {node.meta["val"].shape[0].node.expr for node in placeholders}
    outputs = graph.output_node().args[0]
    if not isinstance(outputs, list | tuple) or not outputs:
        raise NotCapturable("forward returns nothing; expected a tensor, or a tuple or dict of tensors")
    for index, node in enumerate(outputs):
        place = f"output {index} of forward" if len(outputs) > 1 else "what forward returns"
        value = node.meta.get("val") if isinstance(node, fx.Node) else node
        if not isinstance(value, torch.Tensor):
            raise NotCapturable(
                f"{place} is {'a number made of sizes' if isinstance(node, fx.Node) else repr(value)}; "
                "expected a tensor with the rows in dim 0. Wrap the network in a module that returns only "
                "its tensors."
            )
        first: Any = value.shape[0] if value.dim() else 0
        if isinstance(first, int) or first.node.expr not in every_rows:
            shown = {str(expression) for expression in every_rows}
            shape = "(" + ", ".join("rows" if str(d) in shown else str(d) for d in value.shape) + ")"
            raise NotCapturable(
                f"{place} has the shape {shape}; expected dim 0 to be the rows, as in the inputs, since the "
                "server gives each request its own rows. Return one entry per row."
            )
        if value.dtype not in OIP_WORDS:
            raise NotCapturable(
                f"{place} is {value.dtype}, which no client could be told; expected one of "
                f"{', '.join(str(dtype) for dtype in OIP_WORDS)}. Convert it in forward, for example with "
                ".float() or torch.view_as_real()."
            )
