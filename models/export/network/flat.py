"""The network as torch.export is given it: flat tensors in, a flat tuple of tensors out, rows of inputs in dim 0.

    before  Net.forward(batch: {"image", "mask"}, *, scale=2.0) → Answer(logits, None)
    after   FlatNetwork.forward(image, mask) → (logits,)

So structures, fixed values and inputs by name are Python's alone: torch.export, the graph and both files know
flat tensors, and no class has to be registered with torch. `without_wrapper` makes the graph one of the network
again: the paths of its modules, the names of its weights and of its inputs.
"""

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn

from foldserve.models.export.network.example.example import Example
from foldserve.models.export.network.example.structure import leaves
from foldserve.models.export.network.plain_names import is_plain

_NETWORK = "network"


class FlatNetwork(nn.Module):
    """module, called on flat tensors as example says; module is only held."""

    def __init__(self, module: nn.Module, example: Example) -> None:
        super().__init__()
        self.network = module
        self.training = False  # not eval(): the mode of module and its parts is not ours to set
        self._example = example

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The tensors among what module returns, in order."""
        return tensors_of(self._example.call(self.network, inputs))


def tensors_of(returned: Any) -> tuple[Tensor, ...]:
    """The tensors among the leaves of what forward returned, in order."""
    return tuple(leaf for _, leaf in leaves(returned) if isinstance(leaf, Tensor))


def without_wrapper(raw: fx.GraphModule, input_names: Sequence[str]) -> None:
    """Turn the graph of a FlatNetwork, in place, into one of its network, with placeholders of these names."""
    moved = _lift_network(raw)
    parameters = iter(_parameter_names(input_names))
    for node in raw.graph.nodes:
        if node.op == "placeholder":
            # torch.onnx names the file's values after the parameters first. The variable behind one may have
            # another name: fx keeps those of builtins, such as `input`, and of its other variables from it.
            node.target = next(parameters)
            node._rename(node.target)
        elif node.op == "get_attr" and str(node.target).startswith(f"{_NETWORK}."):
            first, dot, rest = inner_path(str(node.target)).partition(".")
            node.target = f"{moved[first]}{dot}{rest}"
        stack = node.meta.get("nn_module_stack")
        if stack:
            node.meta["nn_module_stack"] = {
                key: (inner_path(entry[0]), *entry[1:]) for key, entry in stack.items() if entry[0]
            }


def inner_path(path: str) -> str:
    """The path within the network: `network.layer1.0` → `layer1.0`, and `network` itself, the root → ``."""
    return path.removeprefix(_NETWORK).removeprefix(".") if path.split(".")[0] == _NETWORK else path


def _parameter_names(names: Sequence[str]) -> list[str]:
    """The names as different parameters of a function: those that Python takes as they are."""
    usable = {name for name in names if is_plain(name)}
    parameters: list[str] = []
    for name in names:
        parameter = name if name in usable else "_" + re.sub(r"\W", "_", name, flags=re.ASCII)
        while name not in usable and parameter in usable.union(parameters):
            parameter += "_"
        parameters.append(parameter)
    return parameters


def _lift_network(raw: fx.GraphModule) -> dict[str, str]:
    """Give raw the parts of its network as its own; the name of each part → its name in raw.

    The names differ where a graph module has an attribute of that name itself, such as `graph` or `meta`.
    """
    inner: nn.Module | None = getattr(raw, _NETWORK, None)
    if inner is None:  # a network without weights
        return {}
    delattr(raw, _NETWORK)
    parts = {**inner._modules, **inner._parameters, **inner._buffers}
    parts |= {name: value for name, value in vars(inner).items() if isinstance(value, Tensor)}
    moved: dict[str, str] = {}
    for name, part in parts.items():
        free = name
        while hasattr(raw, free):
            free += "_"
        moved[name] = free
        if name in inner._buffers and (part is None or isinstance(part, Tensor)):
            raw.register_buffer(free, part, persistent=name not in inner._non_persistent_buffers_set)
        else:
            setattr(raw, free, part)
    return moved
