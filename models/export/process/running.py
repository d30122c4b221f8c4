"""Run a network as its owner would, and nothing else: what is set around every eager run and around the capture.

    no gradients, no warnings        nobody trains, and nobody reads them
    the plain way of nn.Transformer  torch's fast path for inference puts zeros at padded positions, and calls operators
                                     that no file can hold; what is captured, and compared with, is the plain way
    no autocast                      a part that forward computes in 16 bits is computed in float32, which is no less
                                     right; 16 bits are a choice of the export (convert.py)
    converted types                  float32_mode.py

Knows nothing of graphs or files. What it sets in torch it puts back; one thread exports at a time.
"""

import contextlib
import warnings
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch.amp.autocast_mode import autocast
from torch.distributions import Distribution

from foldserve.models.export.process.float32_mode import weights_in_float32


@contextlib.contextmanager
def plain_ways(converted: Collection[torch.dtype] = ()) -> Iterator[None]:
    """Within: a network runs, or is captured, by the plain ways of torch. converted: EvalCopy.converted."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), warnings.catch_warnings(), _without_autocast(), weights_in_float32(converted):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextlib.contextmanager
def plain_process() -> Iterator[None]:
    """Within: what the caller's program has set for all of torch does not reach the export.

    A default type or device, an open autocast or inference_mode would change what is made and computed in every step.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            for kind in ("cpu", "cuda"):
                stack.enter_context(torch.autocast(kind, enabled=False))
            if (
                torch.get_default_device().type != "cpu"
            ):  # else every call of torch would pass this mode, for nothing
                stack.enter_context(torch.device("cpu"))
            yield
    finally:
        torch.set_default_dtype(default)


@contextlib.contextmanager
def unchecked_distributions() -> Iterator[None]:
    """Within: torch.distributions does not look at values before it computes with them, which no capture can follow.

    What forward itself asks to be checked (validate_args=True) is.
    """
    checked = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(checked)


@contextlib.contextmanager
def _without_autocast() -> Iterator[None]:
    enter, leave = autocast.__enter__, autocast.__exit__
    autocast.__enter__ = _enter_nothing  # type: ignore[method-assign]
    autocast.__exit__ = _leave_nothing  # type: ignore[method-assign]
    try:
        yield
    finally:
        autocast.__enter__ = enter  # type: ignore[method-assign]
        autocast.__exit__ = leave  # type: ignore[method-assign]


def _enter_nothing(self: autocast) -> autocast:
    return self


def _leave_nothing(self: autocast, *error: Any) -> None:
    return None
