"""Run a network as its owner would, and nothing else: what is set around every eager run and around the capture.

    no gradients, no warnings       nobody trains, and nobody reads them
    the plain way of nn.Transformer torch's fast path for inference puts zeros at padded positions, and calls operators
                                    that no file can hold; what is captured, and compared with, is the plain way
    converted types                 float32_mode.py

Knows nothing of graphs or files. What it sets in torch it puts back; one thread exports at a time.
"""

import contextlib
import warnings
from collections.abc import Collection, Iterator

import torch

from models.export.float32_mode import weights_in_float32


@contextlib.contextmanager
def plain_ways(converted: Collection[torch.dtype] = ()) -> Iterator[None]:
    """Within: a network runs, or is captured, by the plain ways of torch. converted: EvalCopy.converted."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), warnings.catch_warnings(), weights_in_float32(converted):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
