"""Let torch work on a captured program without its function of guards.

Whenever torch.export decomposes a program, and torch.onnx does so too, it writes every assumption about sizes out as
code and traces that code operation by operation, to no effect: the assumptions stay in the program, where guards.py
reads them. A decoder that crops to its skips has hundreds, each a nest of divisions; of a U-Net of five levels the
guards took ten minutes and the rest four seconds.
"""

import contextlib
from collections.abc import Iterator

import torch.export._unlift as unlift


@contextlib.contextmanager
def without_guards() -> Iterator[None]:
    """While this is open, no code is made of guards. Puts back what it replaces."""
    # A torch without this function is left alone: it is then as slow as it was.
    # tests/models/export/capture/test_capture.py tells us.
    original = getattr(unlift, "_ok_to_generate_guards_fn", None)
    if original is None:
        yield
        return
    unlift._ok_to_generate_guards_fn = lambda: False
    try:
        yield
    finally:
        unlift._ok_to_generate_guards_fn = original
