"""Let the parts of a network have any name: `nn.ModuleDict({"class": ..., "été": ..., 'a"b': ...})`.

    before  get_attr target "heads.class.weight"     torch writes `self.heads.class.weight`: no Python
    after   get_attr target "heads_class_weight"     one attribute of the graph module; other targets stay

torch.fx writes a graph as Python source and takes every identifier for an attribute's name, keywords too. While
`any_names()` is open it writes getattr for those; the captured graph then gets plain names by `give_plain_names`, so
that everything behind (the fold, both files) needs to know nothing of this. Where a layer is, people are told from
nn_module_stack, which keeps the network's own names.
"""

import contextlib
import keyword
import operator
import re
from collections.abc import Iterator

import torch
from torch import fx


def is_plain(name: str) -> bool:
    """Whether name can be an attribute in any source that is written here: an ASCII identifier and no keyword."""
    return name.isascii() and name.isidentifier() and not keyword.iskeyword(name)


@contextlib.contextmanager
def any_names() -> Iterator[None]:
    """While this is open, torch.fx writes graphs whose parts have any name. Puts back what it replaces."""
    # A torch without this function is left alone: such names then end in torch.export's own message.
    # tests/models/export/network/test_plain_names.py tells us.
    original = getattr(fx.graph, "_format_target", None)
    if original is None:
        yield
        return
    fx.graph._format_target = _format_target
    try:
        yield
    finally:
        fx.graph._format_target = original


def _format_target(base: str, target: str) -> str:
    for name in target.split("."):
        base = f"{base}.{name}" if is_plain(name) else f"getattr({base}, {name!r})"
    return base


def give_plain_names(graph_module: fx.GraphModule) -> None:
    """Rename, in place, every weight on whose path is a name that is not plain. The source is not written anew."""
    renamed: dict[str, str] = {}
    for node in graph_module.graph.nodes:
        target = str(node.target)
        if node.op != "get_attr" or all(is_plain(part) for part in target.split(".")):
            continue
        if target not in renamed:
            renamed[target] = _free_name(graph_module, re.sub(r"\W", "_", target, flags=re.ASCII))
            value = operator.attrgetter(target)(graph_module)
            if isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter):
                graph_module.register_buffer(renamed[target], value)
            else:
                setattr(graph_module, renamed[target], value)
        node.target = renamed[target]


def _free_name(module: torch.nn.Module, wanted: str) -> str:
    base = wanted if is_plain(wanted) else f"weight_{wanted}"
    name, number = base, 1
    while hasattr(module, name):
        number += 1
        name = f"{base}_{number}"
    return name
