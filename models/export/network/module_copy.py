"""The copies of the user's network that an export works on.

    before  module        anything that runs: training mode, hooks, pruned, weight_norm, half precision, on a GPU
    after   eval_copy     the same computation, eval mode, CPU, floating weights in float32
            double_copy   the eval copy in float64
            fresh copies  one of those as it was before any run, for each run anew (fresh.py)

The module given is only read. Whoever runs a network runs a fresh copy: forward may keep what it made (a grid for the
shape it met, a position table, a count), and what one run leaves behind must not become part of the next one, least of
all of the captured graph.

Weights in 16 bits are written as float32, which is exact; the precision of the files is a setting of its own
(convert.py). Parameters in float64 are written as float32 too, by choice: ONNX Runtime has float64 kernels for few
operators (no convolution), and GPUs compute it 32 to 64 times slower. Where only buffers are in float64 (a table of
frequencies), they are there for their digits and stay. EvalCopy.converted keeps the types that the weights had: forward
may name them (float32_mode.py).
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn.parameter import is_lazy

from foldserve.models.errors import NotCapturable
from foldserve.models.export.network.fresh import FreshRuns, empty_tables
from foldserve.models.export.network.refusals import reason


@dataclass(frozen=True)
class EvalCopy:
    """A network in eval mode, on the CPU, in float32. Never run itself: see fresh.py.

    converted: the float types that weights of the user's module had and that are float32 now. runs: of module.
    """

    module: nn.Module
    converted: frozenset[torch.dtype]
    runs: FreshRuns = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "runs", FreshRuns(self.module))


def eval_copy(module: nn.Module) -> EvalCopy:
    """Return a deep copy of module in eval mode, on the CPU, in float32; module itself is unchanged.

    Eval mode is what the module's own eval() makes of it: where a part of it keeps training (Monte-Carlo dropout), so
    does the copy, and the random numbers are refused later (graph_cleanup.py).
    Raises: NotCapturable when module holds weights without values, a ScriptModule or a quantised module, or
    something that cannot be copied.
    """
    _refuse_script_and_quantised_modules(module)
    _refuse_lazy_parameters(module)
    _refuse_weights_without_values(module)
    kept = list(_attribute_tensors(module))
    converted = _to_convert(
        {p.dtype for p in module.parameters()}, {t.dtype for t in (*module.buffers(), *kept)}
    )

    def plain(tensor: Tensor) -> Tensor:
        wanted = torch.float32 if tensor.dtype in converted else tensor.dtype
        return tensor.detach().to(device="cpu", dtype=wanted)

    # Not reached by Module.to and Module.float: tensors that are plain attributes. And copy.deepcopy refuses those
    # that are results of autograd: pruned and old-style weight_norm modules keep one as the attribute `weight` (a
    # pre-hook makes it anew at each call). So their copies are put into the memo beforehand.
    changed = [t for t in kept if not t.is_leaf or t.dtype in converted or t.device.type != "cpu"]
    memo = {**empty_tables(module), **{id(t): plain(t.detach().clone()) for t in changed}}
    try:
        duplicate = copy.deepcopy(module, memo)
    except Exception as error:
        raise NotCapturable(
            f"{type(module).__name__} cannot be copied ({reason(error)}); the export works "
            "on a deep copy so that yours stays unchanged. Keep files, locks, generators and tensors with a "
            "gradient history out of the module's attributes, or define __deepcopy__."
        ) from error
    duplicate.eval()
    duplicate._apply(plain)  # type: ignore[no-untyped-call]  # of Module.to and Module.float, one by one
    for parameter in duplicate.parameters():
        parameter.requires_grad_(False)
    return EvalCopy(duplicate, converted)


def double_copy(module: nn.Module) -> nn.Module:
    """Return a deep copy of an eval copy in float64, the reference that every answer is compared with."""
    memo = empty_tables(module)
    memo.update(
        (id(t), t.detach().clone().double()) for t in _attribute_tensors(module) if t.is_floating_point()
    )
    duplicate = copy.deepcopy(module, memo)
    return duplicate.double()


def _to_convert(of_parameters: set[torch.dtype], of_others: set[torch.dtype]) -> frozenset[torch.dtype]:
    """The types of weights that become float32: all others, but not float64 of tables beside learned numbers."""
    floats = {dtype for dtype in of_parameters | of_others if dtype.is_floating_point}
    only_tables = torch.float64 not in of_parameters and floats != {torch.float64}
    return frozenset(floats - {torch.float32} - ({torch.float64} if only_tables else set()))


# Where torch keeps quantised modules, now and under its older names.
_QUANTISED = (
    "torch.ao.nn.quantized",
    "torch.ao.nn.intrinsic.quantized",
    "torch.nn.quantized",
    "torch.nn.intrinsic",
)


def _refuse_script_and_quantised_modules(module: nn.Module) -> None:
    for path, submodule in module.named_modules():
        where = f"submodule {path!r}" if path else "the network"
        if isinstance(submodule, torch.jit.ScriptModule):
            raise NotCapturable(
                f"{where} is a ScriptModule ({submodule.original_name}); torch.export cannot see into it. "
                "Give the nn.Module that it was scripted or traced from."
            )
        packed = any(isinstance(value, torch.ScriptObject) for value in vars(submodule).values())
        if packed or type(submodule).__module__.startswith(_QUANTISED):
            raise NotCapturable(
                f"{where} is quantised ({type(submodule).__module__}.{type(submodule).__qualname__}): its weights "
                "are packed for one library's kernels, which ATen and ONNX operators cannot read. Export the float "
                "network from before the quantisation; --precision fp16 or bf16 makes its files smaller."
            )


def _refuse_lazy_parameters(module: nn.Module) -> None:
    lazy = [name for name, p in (*module.named_parameters(), *module.named_buffers()) if is_lazy(p)]
    if lazy:
        raise NotCapturable(
            f"the parameters {_some(lazy)} have no size yet (lazy modules); run the network once on an "
            "example and train or load its weights before the export"
        )


def _refuse_weights_without_values(module: nn.Module) -> None:
    named = [*module.named_parameters(), *module.named_buffers()]
    for path, submodule in module.named_modules():
        named += [
            (f"{path}.{name}" if path else name, tensor)
            for name, value in vars(submodule).items()
            if name not in _REGISTERED
            for tensor in _tensors_in(value)
        ]
    empty = [name for name, tensor in named if tensor.is_meta or isinstance(tensor, FakeTensor)]
    if empty:
        raise NotCapturable(
            f"the weights {_some(empty)} are on the device 'meta': they have a size and no values. Make room for them "
            "with module.to_empty(device='cpu') and load the trained weights (load_state_dict) before the export; "
            "load_state_dict(..., assign=True) does both."
        )


def _some(names: list[str]) -> str:
    """The names, or the first three of them and how many more there are."""
    rest = len(names) - 3
    return ", ".join(names) if rest <= 1 else f"{', '.join(names[:3])} and {rest} more"


_REGISTERED = frozenset({"_parameters", "_buffers", "_modules"})


def _attribute_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Every tensor that an attribute of module or of a submodule holds, and that is neither parameter nor buffer."""
    for submodule in module.modules():
        for name, value in vars(submodule).items():
            if name not in _REGISTERED:
                yield from _tensors_in(value)
        # A result of autograd may be kept as a buffer too; deepcopy refuses it there as well.
        yield from (b for b in submodule._buffers.values() if b is not None and not b.is_leaf)


def _tensors_in(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if not isinstance(value, nn.Parameter):
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors_in(item)
