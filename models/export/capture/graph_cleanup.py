"""Make the raw graph of torch.export one that can be folded, written and served.

    before  placeholders, weights, assertions, writes to buffers, norms that use the batch's own statistics
    after   flat tensors in, flat tuple of outputs out; no assertion, write or such norm; tied weights once

Which outputs: outputs.py. Refused here, with the reason: random numbers, state that one request would leave for
the next, operators that a file of ATen or ONNX operators cannot hold.
"""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch._prims_common import is_contiguous_or_false

from foldserve.models.errors import NotCapturable
from foldserve.models.export.capture.graph_copy import around
from foldserve.models.export.capture.outputs import Outputs, select_outputs
from foldserve.models.export.capture.training_norms import spell_out_training_norms
from foldserve.models.export.network.flat import inner_path
from foldserve.models.export.network.refusals import node_line

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
_RECURRENT = frozenset({aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input})
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
    raw: fx.GraphModule,
    program: torch.export.ExportedProgram,
    input_names: Sequence[str],
    returned: Any,
    *,
    together: bool = False,
) -> tuple[fx.GraphModule, Outputs]:
    """Return the clean graph module, and what it answers. raw is used up.

    returned: what the eager network gave for the example. together: whether the rows belong together (row_modes.py).

    Raises: NotCapturable, naming the layer, when the network cannot be served row by row from a file.
    """
    graph = raw.graph
    graph.set_codegen(fx.graph.CodeGen())
    _drop_assertions_and_writes(graph)
    outputs = select_outputs(graph, returned, input_names, together=together)
    _merge_tied_weights(raw)
    spell_out_training_norms(graph)
    _lay_out_states(graph)
    # Random numbers behind an answer that is left out are dead too, which torch would keep.
    graph.eliminate_dead_code(is_impure_node=_has_effects)
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    _refuse_state(graph, program)
    for node in graph.nodes:
        if node.op in {"call_function", "call_method", "call_module"}:
            _refuse_operator(node)
    clean = around(raw, graph, "CapturedNetwork")
    clean.graph.lint()
    return clean, outputs


def _has_effects(node: fx.Node) -> bool:
    if isinstance(node.target, OpOverload):
        return bool(node.target._schema.is_mutable)
    return node.op in {"placeholder", "output"} or node.is_impure()


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


def _lay_out_states(graph: fx.Graph) -> None:
    """Give recurrent layers their initial states densely laid out.

    A state that comes in with the rows in dim 0 reaches the layer as a transposed view, and torch.onnx does not
    write a layer of dynamic length on such a view.
    """
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in _RECURRENT:
            continue
        for state in node.args[1] if isinstance(node.args[1], list | tuple) else (node.args[1],):
            value = state.meta["val"]
            if is_contiguous_or_false(value):
                continue
            with graph.inserting_before(node):
                dense = graph.call_function(
                    aten.clone.default, (state,), {"memory_format": torch.contiguous_format}
                )
            dense.meta = {k: state.meta[k] for k in ("nn_module_stack", "stack_trace") if k in state.meta}
            with value.fake_mode:
                dense.meta["val"] = value.clone(memory_format=torch.contiguous_format)
            node.replace_input_with(state, dense)


def _refuse_state(graph: fx.Graph, program: torch.export.ExportedProgram) -> None:
    written = {inner_path(name) for name in program.graph_signature.buffers_to_mutate.values()}
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
                f"{where(node)}{node_line(node)} is the custom operator {target._schema.name}: a TorchScript file "
                "that plain torch.jit.load reads, and ONNX Runtime, have only ATen and ONNX operators. Write it with "
                "torch functions."
            )
        if torch.Tag.nondeterministic_seeded in target.tags and _draws(node, target):
            raise NotCapturable(
                f"{where(node)}{node_line(node)} draws random numbers, also in eval mode: the answers cannot be "
                "compared or repeated. Use self.training for dropout, with an eval() that reaches it, or pass the "
                "noise in as an input."
            )
        if target._schema.is_mutable:
            raise NotCapturable(
                f"{where(node)}{node_line(node)} writes in place in a way that torch.export could not dissolve"
            )
    elif (
        node.op != "call_function"
        or isinstance(target, torch._ops.HigherOrderOperator)
        or not _is_size_arithmetic(target)
    ):
        raise NotCapturable(
            f"{where(node)}{node_line(node)} calls {getattr(target, '__name__', target)}, which holds a graph of its "
            "own or is no operator; torch.cond, while_loop, scan and custom autograd cannot be written to both "
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
