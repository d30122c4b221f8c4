"""Masks: inputs of two values, that say which places of a row count.

A mask is a boolean input, an integer one of 0 and 1 (or of 1 alone, as a tokenizer gives it), a float one of 0 and
1, or one that is added to logits: 0 and -inf, or 0 and some -1e9. Which of the two means "counts" is read from the
example: the value at the end of every line that is not padded, or the more frequent one (`open`). Key padding masks,
where True means ignored, are so read as well.

A line of a mask is what a softmax goes over: the last axis that is longer than 1. Where every place of a line is
closed, a softmax is over nothing, and no two runtimes agree; where the reading above is wrong, the same holds of a
line that is open everywhere. So a line of one value is drawn only if the example has such a line.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[Any]

# At most this is no bias that a network adds to a logit, but a mark for "not here".
_CLOSED_LOGIT = -1e3
# Prefixes as padding makes them, scattered ones, lines that are open everywhere: row 0, 1, 2, 3, ...
_PATTERNS = 3


class Masks:
    """values: the example. opened, closed: the two values. axes: the dynamic ones, as in Example."""

    def __init__(self, values: _Array, opened: Any, closed: Any, axes: Mapping[int, str]) -> None:
        self._values, self._opened, self._closed = values, opened, closed
        self._line = _line_of(values, axes)
        if self._line is not None:
            lines = np.moveaxis(values == opened, self._line, -1)
            self._all_open_shown = bool(lines.all(axis=-1).any())
            self._all_closed_shown = bool((~lines).all(axis=-1).any())
            # Padding is at the front where the last place is open and the first is not, more often than the reverse.
            first, last = lines[..., 0], lines[..., -1]
            self._front = int((last & ~first).sum()) > int((first & ~last).sum())
            self._prefixes = self._all_prefixes(lines)

    @classmethod
    def read(cls, values: _Array, axes: Mapping[int, str]) -> "Masks | None":
        """The mask that an example of these values shows, or None when it is none."""
        pair = _two_values(values, _line_of(values, axes))
        return None if pair is None else cls(values, *pair, axes)

    def from_ranges(self, shape: tuple[int, ...], scale: float, rng: np.random.Generator) -> _Array:
        """Padding, scattered and open lines in turn; a float mask has every other row between 0 and 1.

        scale: of no meaning here.
        """
        drawn = self._drawn(shape, rng, scattered=True)
        if self._values.dtype.kind == "f" and {float(self._opened), float(self._closed)} == {0.0, 1.0}:
            # It may as well be a feature; and a mask of fractions masks nothing wholly.
            drawn[::2] = 1.0 - rng.random(drawn[::2].shape)
        return drawn

    def from_values(self, shape: tuple[int, ...], rng: np.random.Generator) -> _Array:
        """As padding makes them only, where the example has no others; else as from_ranges, without fractions."""
        return self._drawn(shape, rng, scattered=self._line is not None and not self._prefixes)

    def unproved(self, name: str) -> str | None:
        """That an integer input of ones was taken for a mask: it may be ids. name: of the input."""
        if self._values.dtype.kind not in "iu" or not (self._values == 1).all():
            return None
        return (
            f"every value of the input {name!r} is 1 in the example; it was taken for a mask, and only 0 and 1 were "
            "tried. If it is none, give an example that shows the least and the largest valid value."
        )

    def _drawn(self, shape: tuple[int, ...], rng: np.random.Generator, *, scattered: bool) -> _Array:
        if self._line is None:  # a flag for each row: nothing that can be masked wholly
            shown = np.unique(self._values)
            return np.asarray(
                rng.choice(shown if len(shown) > 1 else [self._opened, self._closed], size=shape)
            )
        moved = [size for axis, size in enumerate(shape) if axis != self._line]
        opened = self._lines((*moved, shape[self._line]), rng, scattered=scattered)
        chosen = np.where(np.moveaxis(opened, -1, self._line), self._opened, self._closed)
        return np.asarray(chosen.astype(self._values.dtype))

    def _lines(self, shape: tuple[int, ...], rng: np.random.Generator, *, scattered: bool) -> _Array:
        """Which places are open, the line last."""
        length = shape[-1]
        counts = rng.integers(1, max(2, length), size=(*shape[:-1], 1))
        opened = np.arange(length) < counts
        number = np.arange(shape[0])
        if scattered:
            some = rng.random(shape) < 0.5
            some[..., 0] = True  # the first place: behind a causal mask it is all that the first one sees
            opened[number % _PATTERNS == 1] = some[number % _PATTERNS == 1]
        if self._all_open_shown:
            opened[number % _PATTERNS == 2] = True
        if not self._all_open_shown and length > 1:
            opened[..., -1] &= ~opened.all(axis=-1)
        if length == 1 and self._all_closed_shown and not self._all_open_shown:
            opened[...] = False
        return opened[..., ::-1] if self._front else opened

    def _all_prefixes(self, lines: _Array) -> bool:
        """Whether every line of the example is open first and closed behind, or the reverse where that is usual."""
        lines = lines[..., ::-1] if self._front else lines
        return bool((lines[..., 1:] <= lines[..., :-1]).all())


def _two_values(values: _Array, line: int | None) -> tuple[Any, Any] | None:
    """(open, closed) where the values are those of a mask, else None."""
    shown = np.unique(values)
    if values.dtype.kind == "f" and np.isnan(shown).any():
        return None
    if values.dtype.kind == "f" and len(shown) == 2 and shown[1] == 0 and shown[0] <= _CLOSED_LOGIT:
        return shown[1], shown[0]
    if not set(shown.tolist()) <= {0, 1}:
        return None
    one, zero = values.dtype.type(1), values.dtype.type(0)
    if len(shown) == 1 and not shown[0]:
        return (zero, one) if values.dtype.kind == "b" else None  # zeros are more often something else
    if len(shown) == 1 and values.dtype == np.uint8:
        return None  # an empty picture
    opened = _open_value(values == 1, line, is_bool=values.dtype.kind == "b")
    return (one, zero) if opened else (zero, one)


def _open_value(ones: _Array, line: int | None, *, is_bool: bool) -> bool:
    """Whether 1 means "counts".

    Padding leaves one end of every line as it is: that end is open. Where both ends of all lines are the same, no
    line being full, 1 counts in numbers by custom; booleans have no custom, but are padded behind more often.
    """
    if line is not None:
        ends = np.moveaxis(ones, line, -1)
        same = [bool(end.all()) for end in (ends[..., 0], ends[..., -1]) if end.all() or not end.any()]
        if same:
            return same[0] if len(same) == 1 or same[0] == same[1] or is_bool else True
    return bool(ones.mean() >= 0.5)


def _line_of(values: _Array, axes: Mapping[int, str]) -> int | None:
    """The axis that a softmax goes over: the last one behind the rows that is longer than 1, or of any size."""
    return next((a for a in range(values.ndim - 1, 0, -1) if values.shape[a] > 1 or a in axes), None)
