"""Faults in an ONNX file: what a wrong translation or optimiser could do. The model given is kept."""

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from tests.models.export.wrong.in_graph import some

Fault = tuple[str, str, Callable[[], onnx.ModelProto]]
"""The kind, the place, and what makes the wrong model."""

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
_ACTIVATIONS = {
    "Relu": "Neg",
    "Clip": "Relu",
    "Gelu": "Relu",
    "Erf": "Tanh",
    "Sigmoid": "Tanh",
    "HardSwish": "Relu",
    "Tanh": "Sigmoid",
}


def faults(model: onnx.ModelProto, most: int, seed: str = "") -> Iterator[Fault]:
    """Every fault that fits, each kind at `most` places; see in_graph.some()."""
    for kind, places, change in _KINDS:
        for index, name in some(places(model.graph), most, f"{seed} {kind}"):
            yield kind, name, _wrong(model, index, change)


def _wrong(
    model: onnx.ModelProto, index: int, change: Callable[[onnx.GraphProto, int], None]
) -> Callable[[], onnx.ModelProto]:
    def make() -> onnx.ModelProto:
        wrong = onnx.ModelProto()
        wrong.CopyFrom(model)
        change(wrong.graph, index)
        return wrong

    return make


def _weights(
    fits: Callable[[tuple[int, ...]], bool],
) -> Callable[[onnx.GraphProto], list[tuple[int, str]]]:
    def places(graph: onnx.GraphProto) -> list[tuple[int, str]]:
        return [
            (index, tensor.name)
            for index, tensor in enumerate(graph.initializer)
            if tensor.data_type in _FLOATS and np.prod(tensor.dims) > 1 and fits(tuple(tensor.dims))
        ]

    return places


def _nodes(fits: Callable[[onnx.NodeProto], bool]) -> Callable[[onnx.GraphProto], list[tuple[int, str]]]:
    return lambda graph: [(i, node.name or node.op_type) for i, node in enumerate(graph.node) if fits(node)]


def _on_weight(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[onnx.GraphProto, int], None]:
    def on_graph(graph: onnx.GraphProto, index: int) -> None:
        tensor = graph.initializer[index]
        value = numpy_helper.to_array(tensor)
        tensor.CopyFrom(
            numpy_helper.from_array(np.ascontiguousarray(change(value)).astype(value.dtype), tensor.name)
        )

    return on_graph


def _without_channel(weight: np.ndarray) -> np.ndarray:
    wrong = weight.copy()
    wrong[len(wrong) // 2] = 0
    return wrong


def _swapped(weight: np.ndarray) -> np.ndarray:
    wrong = weight.copy()
    wrong[[0, -1]] = weight[[-1, 0]]
    return wrong


def _square_input(graph: onnx.GraphProto, index: int) -> None:
    name = graph.input[index].name
    for node in graph.node:
        node.input[:] = [f"{name}_squared" if given == name else given for given in node.input]
    graph.node.insert(0, onnx.helper.make_node("Mul", [name, name], [f"{name}_squared"]))


def _attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto | None:
    return next((attribute for attribute in node.attribute if attribute.name == name), None)


def _other_epsilon(graph: onnx.GraphProto, index: int) -> None:
    epsilon = _attribute(graph.node[index], "epsilon")
    assert epsilon is not None
    epsilon.f *= 100


def _is_padded(node: onnx.NodeProto) -> bool:
    pads = _attribute(node, "pads")
    return node.op_type == "Conv" and pads is not None and pads.ints[-1] > 0


def _shift_pad(graph: onnx.GraphProto, index: int) -> None:
    pads = _attribute(graph.node[index], "pads")
    assert pads is not None
    pads.ints[len(pads.ints) // 2 - 1] += 1
    pads.ints[-1] -= 1


def _other_activation(graph: onnx.GraphProto, index: int) -> None:
    node = graph.node[index]
    node.op_type = _ACTIVATIONS[node.op_type]
    del node.input[1:], node.attribute[:]


def _sums(graph: onnx.GraphProto) -> list[tuple[int, str]]:
    constant = {tensor.name for tensor in graph.initializer}
    constant |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    return [
        (index, node.name)
        for index, node in enumerate(graph.node)
        if node.op_type == "Add" and not constant & set(node.input)
    ]


def _lose_summand(graph: onnx.GraphProto, index: int) -> None:
    graph.node[index].op_type = "Identity"
    del graph.node[index].input[1:]


def _other_axis(graph: onnx.GraphProto, index: int) -> None:
    axis = _attribute(graph.node[index], "axis")
    assert axis is not None
    axis.i -= 1


_KINDS: tuple[
    tuple[str, Callable[[onnx.GraphProto], list[tuple[int, str]]], Callable[[onnx.GraphProto, int], None]],
    ...,
] = (
    ("zeroed weight", _weights(lambda dims: len(dims) > 1), _on_weight(np.zeros_like)),
    ("weight of another size", _weights(lambda dims: len(dims) > 1), _on_weight(lambda w: w * 1.02)),
    ("zeroed channel", _weights(lambda dims: len(dims) > 1), _on_weight(_without_channel)),
    ("swapped channels", _weights(lambda dims: len(dims) > 1 and dims[0] > 1), _on_weight(_swapped)),
    (
        "transposed weight",
        _weights(lambda dims: len(dims) == 2 and dims[0] == dims[1]),
        _on_weight(np.transpose),
    ),
    ("lost bias", _weights(lambda dims: len(dims) == 1), _on_weight(np.zeros_like)),
    ("squared input", lambda graph: [(i, v.name) for i, v in enumerate(graph.input)], _square_input),
    (
        "changed epsilon",
        _nodes(lambda node: _attribute(node, "epsilon") is not None),
        _other_epsilon,
    ),
    ("shifted pad", _nodes(_is_padded), _shift_pad),
    ("other activation", _nodes(lambda node: node.op_type in _ACTIVATIONS), _other_activation),
    ("lost summand", _sums, _lose_summand),
    ("other axis", _nodes(lambda node: node.op_type == "Softmax"), _other_axis),
)
