"""Write a captured graph as a TorchScript file that plain torch.jit.load reads.

The source of the one method: torchscript_source.py. Weights become buffers (nothing is trained from this
file), named after their places in the network. The module tree is gone: that is the price of folding on the
graph.
"""

import functools
import hashlib
import math  # noqa: F401  the source's math.ceil and the like are looked up here, where it is defined
import operator
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from foldserve.models.errors import FormNotWritten
from foldserve.models.export.network.plain_names import is_plain
from foldserve.models.export.process.suppress_output import suppress_output
from foldserve.models.export.writers.reasons import reason
from foldserve.models.export.writers.torchscript_source import torchscript_source
from foldserve.models.export.writers.torchscript_stream import write_torchscript


def to_torchscript(graph_module: fx.GraphModule) -> torch.jit.ScriptModule:
    """Return the script module of graph_module: flat tensors in, a tensor or a tuple of tensors out.

    Raises: FormNotWritten, with the compiler's first line, when TorchScript does not take an operator.
    """
    names = attribute_names(graph_module)
    source = torchscript_source(graph_module, names)
    holder = _holder_type(hashlib.sha256(source.encode()).hexdigest()[:16])()
    for target, name in names.items():
        holder.register_buffer(name, operator.attrgetter(target)(graph_module).detach())
    holder.eval()
    with suppress_output():
        scripted: Any = torch.jit.script(holder)
        try:
            if not scripted._c._has_method("forward"):
                scripted.define(source)
        except RuntimeError as error:
            raise FormNotWritten(f"TorchScript does not take the network: {reason(error)}") from error
    return scripted  # type: ignore[no-any-return]


def attribute_names(graph_module: fx.GraphModule) -> dict[str, str]:
    """Name of each weight in the graph -> its name in the file."""
    names: dict[str, str] = {}
    for node in graph_module.graph.nodes:
        if node.op == "get_attr" and str(node.target) not in names:
            names[str(node.target)] = _attribute_name(str(node.target), set(names.values()))
    return names


@functools.lru_cache(maxsize=256)
def _holder_type(digest: str) -> type[nn.Module]:
    """The class that TorchScript names the file's module after: one per source.

    TorchScript shares a compiled type between modules of one class with the same attributes, so one class for
    all would keep the first network's forward, and a new class for each would get a number from the process's
    history into the file: one network would not give the same file twice.
    """
    return type(f"Network_{digest}", (nn.Module,), {"__module__": "foldserve"})


def save_torchscript(scripted: torch.jit.ScriptModule, path: Path) -> None:
    """Write scripted to path; the same module gives the same bytes. Raises: OSError."""
    with suppress_output():
        write_torchscript(scripted, path)


def load_torchscript(path: Path) -> torch.jit.ScriptModule:
    """Read the file as a server does. Raises: FormNotWritten when TorchScript does not take it."""
    try:
        with suppress_output():
            return torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-any-return, no-untyped-call]
    except RuntimeError as error:
        raise FormNotWritten(f"TorchScript cannot load the file that it wrote: {reason(error)}") from error


def run_torchscript(scripted: torch.jit.ScriptModule, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Run on flat inputs; always a tuple of outputs."""
    with torch.no_grad(), suppress_output():
        outputs = scripted(*inputs)
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def _attribute_name(target: str, taken: set[str]) -> str:
    """`layer1.0.weight` → `layer1_0_weight`, a number behind it where two would be the same."""
    name = re.sub(r"\W", "_", target, flags=re.ASCII)
    if not is_plain(name) or name in {"training", "forward"} or hasattr(nn.Module, name):
        name = f"weight_{name}"
    number = 1
    unique = name
    while unique in taken:
        number += 1
        unique = f"{name}_{number}"
    return unique
