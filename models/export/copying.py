"""The copy of the user's network that an export works on: in eval mode, on the CPU, in float32.

    before  module      anything that runs: training mode, hooks, pruned, weight_norm, half precision, on a
    GPU after   eval_copy   the same computation, eval mode, CPU, every floating parameter and buffer in
    float32

The module given is only read. Networks in half, bfloat16 or float64 are captured and folded in float32 too;
the precision of the files is a setting of its own (convert.py), measured against this copy.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy

from models.errors import NotCapturable
from models.export.float64_mode import is_smaller_float


def eval_copy(module: nn.Module) -> nn.Module:
    """Return a deep copy of module in eval mode, on the CPU, in float32; module itself is unchanged.

    Raises: NotCapturable when module holds a ScriptModule, or something that cannot be copied.
    """
    _refuse_script_modules(module)
    _refuse_lazy_parameters(module)
    # copy.deepcopy refuses tensors that are results of autograd. Pruned and old-style weight_norm modules
    # keep such a tensor as the attribute `weight` (a pre-hook makes it anew at each call), so their copies
    # are put into the memo beforehand; the originals stay as they are.
    memo: dict[int, Any] = {id(t): t.detach().clone() for t in _computed_tensors(module)}
    try:
        duplicate = copy.deepcopy(module, memo)
    except Exception as error:
        raise NotCapturable(
            f"{type(module).__name__} cannot be copied ({type(error).__name__}: {error}); the export works "
            "on a deep copy so that yours stays unchanged. Keep files, locks, generators and tensors with a "
            "gradient history out of the module's attributes, or define __deepcopy__."
        ) from error
    duplicate.eval()
    for submodule in duplicate.modules():
        submodule.training = False  # for modules whose own train() does not pass the flag on
    duplicate.to(device="cpu")
    duplicate.float()
    for parameter in duplicate.parameters():
        parameter.requires_grad_(False)
    return duplicate


def double_copy(module: nn.Module) -> nn.Module:
    """Return a deep copy of an eval copy in float64, the reference that every answer is compared with."""
    memo: dict[int, Any] = {id(t): t.detach().clone() for t in _computed_tensors(module)}
    duplicate = copy.deepcopy(module, memo)
    return duplicate.double()


def double_graph(graph_module: fx.GraphModule) -> fx.GraphModule:
    """The same for a captured graph: every floating weight is float64, and every float type that a node
    asks for.
    """
    duplicate: fx.GraphModule = copy.deepcopy(graph_module)
    duplicate.double()
    for node in duplicate.graph.nodes:
        if node.op == "call_function":
            node.args = tuple(torch.float64 if is_smaller_float(a) else a for a in node.args)
            node.kwargs = {k: torch.float64 if is_smaller_float(v) else v for k, v in node.kwargs.items()}
    duplicate.recompile()
    return duplicate


def _refuse_script_modules(module: nn.Module) -> None:
    for path, submodule in module.named_modules():
        if isinstance(submodule, torch.jit.ScriptModule):
            where = f"submodule {path!r}" if path else "the network"
            raise NotCapturable(
                f"{where} is a ScriptModule ({submodule.original_name}); torch.export cannot see into it. "
                "Give the nn.Module that it was scripted or traced from."
            )


def _refuse_lazy_parameters(module: nn.Module) -> None:
    lazy = [name for name, p in (*module.named_parameters(), *module.named_buffers()) if is_lazy(p)]
    if lazy:
        raise NotCapturable(
            f"the parameters {', '.join(lazy)} have no size yet (lazy modules); run the network once on an "
            "example and train or load its weights before the export"
        )


def _computed_tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    """Every tensor with a gradient history that an attribute of module or of a submodule holds."""
    for submodule in module.modules():
        for value in vars(submodule).values():
            yield from _computed_tensors_in(value)


def _computed_tensors_in(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if not value.is_leaf:
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _computed_tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _computed_tensors_in(item)
