"""Let a size that varies go into functions of torch that take a Python number, while a network is captured.

    before  torch.linspace(0, 1, x.shape[1])     the size becomes a constant, and the axis is fixed
    after   the same numbers, computed from torch.arange(x.shape[1]), which leaves the size free

Coordinates (linspace, fftfreq, affine_grid), windows, pairs of positions (triu_indices), sizes as tensors (as_tensor),
pools over all there is (max_pool1d(x, x.size(2))), and len() of a tensor. A call without such a size is torch's own.
What is captured is compared with the network itself afterwards, as everything is (parity.py).
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@contextlib.contextmanager
def sizes_in_calls(network: nn.Module) -> Iterator[None]:
    """While this is open, the functions above take sizes that vary: torch's, and len() in the files of network's parts.

    Puts back what it replaces.
    """
    files = [
        sys.modules[name] for name in {type(part).__module__ for part in network.modules()} & {*sys.modules}
    ]
    # Not in builtins: torch's compiler may read those for the first time, and would keep ours.
    own = [vars(file) for file in files if "len" not in vars(file) and not file.__name__.startswith("torch.")]
    for names in own:
        names["len"] = _length
    try:
        with _SizesInCalls():
            yield
    finally:
        for names in own:
            del names["len"]


def _length(collection: Any) -> Any:
    return collection.shape[0] if isinstance(collection, Tensor) and collection.dim() else len(collection)


class _SizesInCalls(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        replacement = _REPLACEMENTS.get(func)
        answer = None
        sizes = [*args, *kwargs.values(), *(args[0].shape if func in _LENGTHS and args else ())]
        if replacement is not None and _varies(sizes):
            answer = replacement(*args, **kwargs)
        return func(*args, **kwargs) if answer is None else answer


def _varies(argument: Any) -> bool:
    """Whether it is a size that varies, or a list with one."""
    if isinstance(argument, list | tuple):
        return any(_varies(one) for one in argument)
    return isinstance(argument, torch.SymInt | torch.SymFloat)


def _places(steps: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """(steps,) from 0 up, and the last of them, at least 1 so that it divides: (1,)."""
    places = torch.arange(steps, dtype=dtype or torch.get_default_dtype())
    return places, places[-1:].clamp(min=1)


def _linspace(start: Any, end: Any, steps: Any, **kwargs: Any) -> Tensor:
    """As torch computes it: from the nearer end."""
    places, last = _places(steps, **kwargs)
    step = (end - start) / last
    return torch.where(2 * places + 1 <= last, start + step * places, end - step * (last - places))


def _logspace(start: Any, end: Any, steps: Any, base: float = 10.0, **kwargs: Any) -> Tensor:
    return torch.pow(base, _linspace(start, end, steps, **kwargs))


def _window(*cosines: float) -> Callable[..., Tensor]:
    """The window that is a sum of cosines, from the constant on (torch.signal.windows.general_cosine)."""

    def window(length: Any, periodic: bool = True, **kwargs: Any) -> Tensor:
        places, last = _places(length + 1 if periodic else length, **kwargs)
        values = torch.zeros_like(places)
        for times, share in enumerate(cosines):
            values = values + share * torch.cos(times * (2 * torch.pi / last) * places)
        return values[:-1] if periodic else values

    return window


def _fftfreq(n: Any, d: float = 1.0, **kwargs: Any) -> Tensor:
    places, _ = _places(n, **kwargs)
    frequencies: Tensor = torch.where(2 * places < n, places, places - n) / (n * d)
    return frequencies


def _rfftfreq(n: Any, d: float = 1.0, **kwargs: Any) -> Tensor:
    frequencies: Tensor = _places(n // 2 + 1, **kwargs)[0] / (n * d)
    return frequencies


def _triangle(holds: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The pairs of a row and a column, (2, pairs), whose distance holds."""

    def indices(row: Any, col: Any, offset: Any = 0, **kwargs: Any) -> Tensor:
        return holds(torch.arange(col) - torch.arange(row)[:, None], offset).nonzero().T

    return indices


def _as_tensor(data: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Tensor:
    if isinstance(data, list | tuple):
        return torch.stack([_as_tensor(one, dtype) for one in data])
    whole = isinstance(data, int | torch.SymInt)
    return torch.scalar_tensor(data, dtype=dtype or (torch.int64 if whole else torch.get_default_dtype()))


def _new_tensor(like: Tensor, data: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Tensor:
    return _as_tensor(data, dtype or like.dtype)


def _affine_grid(theta: Tensor, size: Sequence[Any], align_corners: bool | None = None) -> Tensor | None:
    """theta (N, 2, 3) and size (N, C, H, W) → (N, H, W, 2); of volumes torch's own."""
    if theta.dim() != 3 or theta.shape[1] != 2:
        return None
    y, x = torch.meshgrid([_side(steps, align_corners is True) for steps in size[2:]], indexing="ij")
    return torch.einsum("hwk,nik->nhwi", torch.stack([x, y, torch.ones_like(x)], dim=-1), theta)


def _side(steps: Any, corners: bool) -> Tensor:
    """The middles of so many pixels between -1 and 1; or those of the outermost at -1 and 1."""
    places, last = _places(steps)
    return (2 * places - places[-1:]) / (last if corners else places[-1:] + 1)


def _over_all(reduce: Callable[..., Tensor], dims: int) -> Callable[..., Tensor | None]:
    """A pool whose kernel is as large as the last dims are: one number over all of them. None for another pool."""

    def pool(
        x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, *args: Any, **kwargs: Any
    ) -> Tensor | None:
        kernel = kernel_size if isinstance(kernel_size, list | tuple) else (kernel_size,) * dims
        padded = any(padding) if isinstance(padding, list | tuple) else padding
        asked = (
            kwargs.get("return_indices") or kwargs.get("divisor_override") or kwargs.get("dilation", 1) != 1
        )
        if padded or args or asked or not all(map(_same, kernel, x.shape[-dims:])):
            return None
        return reduce(x, dim=tuple(range(-dims, 0)), keepdim=True)

    return pool


def _max_pool1d(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """As a pool of pictures of one line: without gradients torch's own takes the length for a constant."""
    options = {"dilation": dilation, "return_indices": return_indices}
    whole = _over_all(torch.amax, 1)(x, kernel_size, stride, padding, **options)
    if whole is not None:
        return whole

    def of_line(along: Any, across: int) -> tuple[int, Any]:
        return (across, along[0] if isinstance(along, list | tuple) else along)

    pool: Any = F.max_pool2d
    pooled = pool(
        x.unsqueeze(-2),
        of_line(kernel_size, 1),
        of_line(kernel_size if stride is None or stride == () else stride, 1),
        of_line(padding, 0),
        of_line(dilation, 1),
        ceil_mode,
        return_indices,
    )
    return tuple(one.squeeze(-2) for one in pooled) if return_indices else pooled.squeeze(-2)


def _same(one: Any, other: Any) -> bool:
    """Whether two sizes are one whatever they are; asking `==` would fix them."""
    one, other = (size.node.expr if isinstance(size, torch.SymInt) else size for size in (one, other))
    return bool(one == other)


# Functions that fix a size of their first argument, too.
_LENGTHS = frozenset({F.max_pool1d, torch.max_pool1d})
# None as an answer: this call is torch's own.
_REPLACEMENTS: dict[Any, Callable[..., Tensor | None]] = {
    torch.linspace: _linspace,
    torch.logspace: _logspace,
    torch.fft.fftfreq: _fftfreq,
    torch.fft.rfftfreq: _rfftfreq,
    torch.hann_window: _window(0.5, -0.5),
    torch.hamming_window: _window(0.54, -0.46),
    torch.blackman_window: _window(0.42, -0.5, 0.08),
    torch.tril_indices: _triangle(torch.le),
    torch.triu_indices: _triangle(torch.ge),
    torch.as_tensor: _as_tensor,
    Tensor.new_tensor: _new_tensor,
    F.affine_grid: _affine_grid,
    F.max_pool1d: _max_pool1d,
    torch.max_pool1d: _max_pool1d,
    F.max_pool2d: _over_all(torch.amax, 2),
    F.max_pool3d: _over_all(torch.amax, 3),
    F.avg_pool1d: _over_all(torch.mean, 1),
    F.avg_pool2d: _over_all(torch.mean, 2),
    F.avg_pool3d: _over_all(torch.mean, 3),
}
