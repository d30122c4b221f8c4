"""Let a network keep things by size, in a dict or with functools.lru_cache, while it is captured.

    before  self.masks[x.shape[1]]     TypeError: unhashable type: non-nested SymInt
    after   a size that varies is a key as any other: equal to itself, to no number, to no size of another capture

A look-up with such a key misses what earlier runs stored under numbers, so that the graph has the computation, and
finds what this capture itself stored. torch leaves the hash out because a key that meets an equal number would fix the
size; a hash over the symbol's name never meets one.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


def _hash(size: Any) -> int:
    node = size.node
    if node.is_nested_int():
        return hash(node.nested_int())
    if node.is_constant():
        return hash(node.int_())
    # The environment keeps its number as long as a key of it is kept anywhere.
    return hash((id(node.shape_env), str(node.expr)))


@contextlib.contextmanager
def sizes_as_keys() -> Iterator[None]:
    """While this is open, sizes that vary can be keys. Puts back what it replaces."""
    original = torch.SymInt.__hash__
    torch.SymInt.__hash__ = _hash  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.SymInt.__hash__ = original  # type: ignore[method-assign]
