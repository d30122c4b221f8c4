"""Write a captured graph as the source of one TorchScript method.

    before  conv = aten.conv2d.default(x, weight, bias, [1, 1])      an fx node on an ATen overload
    after   conv = torch.ops.aten.conv2d(x, self.weight, self.bias, [1, 1])

Why not torch.jit.trace: it bakes the batch size into reshapes, and corrupts the heap on aten.lstm. What
changes on the way: overloads become packets (TorchScript picks by types), sizes are plain ints, an inference
norm and its getitem become aten.batch_norm, tensors are made on the device of the first input, wherever the file
runs, layout and pin_memory go, empty lists and lists of optionals get their type. Pure: text out, nothing is
compiled here.
"""

import builtins
import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from foldserve.models.errors import FormNotWritten

aten = torch.ops.aten

LOCAL = "v_"
"""In front of a node's name, in the source and so in the file."""

_DROPPED_KEYWORDS = frozenset({"device", "layout", "pin_memory"})
"""What the graph says of these holds for the machine that exports. A device is written anew; see _device."""

# ATen operators on sizes exist in TorchScript under their plain names.
_SIZE_OPERATORS = {
    aten.sym_size.int: "torch.ops.aten.size",
    aten.sym_numel.default: "torch.ops.aten.numel",
    aten.sym_stride.int: "torch.ops.aten.stride",
    aten.sym_storage_offset.default: "torch.ops.aten.storage_offset",
}

_INFIX: dict[Any, str] = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.floordiv: "//",
    operator.truediv: "/",
    operator.mod: "%",
    operator.pow: "**",
    operator.eq: "==",
    operator.ne: "!=",
    operator.lt: "<",
    operator.le: "<=",
    operator.gt: ">",
    operator.ge: ">=",
    operator.and_: "&",
    operator.or_: "|",
    operator.lshift: "<<",
    operator.rshift: ">>",
}

_CALLS: dict[Any, str] = {
    operator.neg: "-({})",
    operator.not_: "not ({})",
    operator.abs: "abs({})",
    builtins.abs: "abs({})",
    builtins.int: "int({})",
    builtins.float: "float({})",
    builtins.max: "max({}, {})",
    builtins.min: "min({}, {})",
    torch.sym_max: "max({}, {})",
    torch.sym_min: "min({}, {})",
    torch.sym_float: "float({})",
    torch.sym_int: "int({})",
    torch.sym_not: "not ({})",
    torch.sym_ite: "({1} if {0} else {2})",
    math.trunc: "int({})",
    math.floor: "int(math.floor({}))",
    math.ceil: "int(math.ceil({}))",
    math.sqrt: "math.sqrt({})",
    torch.sym_sqrt: "math.sqrt({})",
}


def torchscript_source(graph_module: fx.GraphModule, weights: Mapping[str, str]) -> str:
    """Return `def forward(self, ...)` for graph_module.

    weights: get_attr target → the attribute's name on the script module.
    Returns the tensor itself for one output, a tuple of tensors for several.
    Raises: FormNotWritten for an operator that TorchScript has no counterpart of.
    """
    names = _local_names(graph_module.graph)
    device = _device(graph_module.graph, names)
    lines: list[str] = []
    header = result = ""
    parameters = []
    for node in graph_module.graph.nodes:
        if node.op == "placeholder":
            parameters.append(f"{names[node]}: Tensor")
        elif node.op == "get_attr":
            lines.append(f"{names[node]} = self.{weights[str(node.target)]}")
        elif node.op == "call_function":
            lines.append(f"{names[node]} = {_expression(node, names, device)}")
        elif node.op == "output":
            outputs = [names[n] for n in node.args[0]]
            result = outputs[0] if len(outputs) == 1 else f"({', '.join(outputs)})"
            kind = "Tensor" if len(outputs) == 1 else f"Tuple[{', '.join(['Tensor'] * len(outputs))}]"
            header = f"def forward(self, {', '.join(parameters)}) -> {kind}:"
    return "\n    ".join([header, *lines, f"return {result}"]) + "\n"


def _local_names(graph: fx.Graph) -> dict[fx.Node, str]:
    """A name per node that no TorchScript keyword or builtin can clash with."""
    return {node: f"{LOCAL}{node.name}" for node in graph.nodes}


def _device(graph: fx.Graph, names: Mapping[fx.Node, str]) -> str:
    """Where the file runs: where its inputs are, and its weights were put."""
    return f"{names[next(node for node in graph.nodes if node.op == 'placeholder')]}.device"


def _expression(node: fx.Node, names: Mapping[fx.Node, str], device: str) -> str:
    target: Any = node.target
    if target is operator.getitem:
        return _getitem(node, names)
    if target is aten._native_batch_norm_legit_no_training.default:
        *tensors, momentum, eps = (_value(a, names) for a in node.args)
        return f"torch.ops.aten.batch_norm({', '.join(tensors)}, False, {momentum}, {eps}, False)"
    if target is aten._local_scalar_dense.default or target is aten.item.default:
        return f"{_scalar_type(node)}({_value(node.args[0], names)})"
    if target in _INFIX:
        left, right = (_value(a, names) for a in node.args)
        return f"({left} {_INFIX[target]} {right})"
    if target in _CALLS:
        return _CALLS[target].format(*(_value(a, names) for a in node.args))
    if target is getattr(torch, "sym_sum", None):
        return "(" + " + ".join(_value(a, names) for a in node.args[0]) + ")"  # type: ignore[union-attr]
    if isinstance(target, OpOverload) and target.namespace == "aten":
        return _operator_call(node, target, names, device)
    raise FormNotWritten(f"{node.name}: {target} has no counterpart in TorchScript")


def _getitem(node: fx.Node, names: Mapping[fx.Node, str]) -> str:
    source, index = node.args
    if isinstance(source, fx.Node) and source.target is aten._native_batch_norm_legit_no_training.default:
        if index != 0:
            raise FormNotWritten(
                f"{node.name} reads the saved statistics of a norm; they exist only for training"
            )
        return names[source]
    return f"{_value(source, names)}[{_value(index, names)}]"


def _scalar_type(node: fx.Node) -> str:
    value = node.meta["val"]
    if isinstance(value, torch.SymBool | bool):
        return "bool"
    return "float" if isinstance(value, torch.SymFloat | float) else "int"


def _operator_call(node: fx.Node, target: OpOverload, names: Mapping[fx.Node, str], device: str) -> str:
    function = _SIZE_OPERATORS.get(target, f"torch.ops.aten.{target._opname}")
    schema = {argument.name: argument for argument in target._schema.arguments}
    positional = [
        _typed(value, argument.real_type, names)
        for value, argument in zip(node.args, target._schema.arguments, strict=False)
    ]
    keywords = [
        f"{key}={_typed(value, schema[key].real_type, names)}"
        for key, value in node.kwargs.items()
        if key not in _DROPPED_KEYWORDS
    ]
    makes_one = not any(isinstance(value, fx.Node) and _is_tensor(value) for value in node.args)
    if "device" in schema and (makes_one or node.kwargs.get("device") is not None):
        keywords.append(f"device={device}")
    return f"{function}({', '.join(positional + keywords)})"


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _typed(value: Any, kind: Any, names: Mapping[fx.Node, str]) -> str:
    """The value as source text, its type written out where TorchScript would infer another one."""
    if isinstance(value, list | tuple) and (not value or None in value):
        return f"torch.jit.annotate({_python_type(kind)}, {_value(list(value), names)})"
    return _value(value, names)


def _python_type(kind: Any) -> str:
    text = kind.annotation_str.replace("SymInt", "int")
    while text.startswith("Optional[") and text.endswith("]"):
        text = text[len("Optional[") : -1]
    return str(text)


def _value(value: Any, names: Mapping[fx.Node, str]) -> str:
    if isinstance(value, fx.Node):
        return names[value]
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item, names) for item in value) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    if isinstance(value, bool | int | float | str) or value is None:
        return ascii(value)
    if isinstance(value, torch.dtype | torch.memory_format):
        return str(value)
    if isinstance(value, torch.device):
        return f"torch.device('{value}')"
    raise FormNotWritten(
        f"the graph holds the value {value!r} ({type(value).__name__}), which TorchScript cannot"
    )
