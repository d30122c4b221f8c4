"""What a TorchScript module returned, in the signature's order."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch


def as_sequence(result: Any, names: tuple[str, ...]) -> Sequence[torch.Tensor]:
    """The outputs by the signature's names: a module returns a tensor, a tuple or list, or a dict by name.

    Raises: ValueError when there are more or fewer, one is missing, or one is not a tensor.
    """
    if isinstance(result, torch.Tensor):
        tensors: Sequence[torch.Tensor] = [result]
    elif isinstance(result, Mapping):
        absent = [name for name in names if name not in result]
        if absent:
            raise ValueError(
                f"the module returned {', '.join(map(str, result))}; the signature names {', '.join(absent)} too: "
                "fix `signature` in config.yaml, or export the model again"
            )
        tensors = [result[name] for name in names]
    else:
        tensors = list(result) if isinstance(result, Sequence) else [result]
    others = sorted({type(one).__name__ for one in tensors if not isinstance(one, torch.Tensor)})
    if others:
        raise ValueError(
            f"the module returned {', '.join(others)} among its outputs; expected tensors: have it return "
            "torch.tensor(number) for a number"
        )
    if len(tensors) != len(names):
        raise ValueError(
            f"the module returned {len(tensors)} tensors, the signature has {len(names)} outputs"
        )
    return tensors
