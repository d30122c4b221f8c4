"""What the fold did: how many batch norms it met, how many are gone, and why each of the others stayed.

Pure data; the manifest, the command line and the documentation all read it from here.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Unfolded:
    """A batch norm that is still in the graph: its module path (or node name), and the reason."""

    where: str
    reason: str


@dataclass(frozen=True)
class FoldReport:
    """found = batch norm calls in the captured graph whose result is used; folded + len(left) = found."""

    found: int
    folded: int
    left: tuple[Unfolded, ...]
