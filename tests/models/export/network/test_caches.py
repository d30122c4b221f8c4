"""Networks that keep what they made for a shape: exported for every shape, whether they ran before or not."""

import functools

import pytest
import torch
from torch import Tensor, nn

from foldserve.models.errors import NotCapturable
from foldserve.models.export import export_model
from foldserve.models.export.network.caches import without_caches
from foldserve.models.export.network.example.example import read_example
from foldserve.models.export.network.fresh import fresh_copy
from foldserve.models.export.network.module_copy import eval_copy
from foldserve.models.export.writers.torchscript_writer import load_torchscript
from tests.models.export.support import pictures


class Grid(nn.Module):
    """As detection heads do: a grid for the shape of the last batch, rows included."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 2, 1)
        self.shape = None
        self.grid = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.shape != y.shape:
            self.shape = y.shape
            self.grid = torch.arange(y.shape[3]).float() + torch.arange(y.shape[2])[:, None]
        return y + self.grid


class Positions(nn.Module):
    """A table of rotations that is a buffer and grows with the longest input met."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.grow(8)

    def grow(self, length: int) -> None:
        self.longest = length
        angles = torch.arange(length).float()[:, None] * torch.tensor([1.0, 0.5, 0.1, 0.01])
        self.register_buffer("cos", angles.cos(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > self.longest:
            self.grow(x.shape[1])
        return self.layer(x) * self.cos[: x.shape[1]]


class Mask(nn.Module):
    """A buffer that the first run makes."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "mask") or self.mask.shape[0] != x.shape[1]:
            self.register_buffer("mask", torch.ones(x.shape[1], x.shape[1]).tril())
        return self.mask @ self.layer(x)


class ByLength(nn.Module):
    """A dict by length and rows."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.made = {}

    def forward(self, x: Tensor) -> Tensor:
        key = tuple(x.shape[:2])
        if key not in self.made:
            self.made[key] = torch.ones(x.shape[1], x.shape[1]).tril()
        return self.made[key] @ self.layer(x)


@functools.lru_cache
def lower_triangle(length: int) -> Tensor:
    return torch.ones(length, length).tril()


class ByFunction(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return lower_triangle(x.shape[1]) @ self.layer(x)


HEIGHT_AND_WIDTH = {"x": {2: "height", 3: "width"}}
LENGTH = {"x": {1: "length"}}
STEPS = (torch.randn(2, 6, 4),)


PICTURES = (pictures(),)


@pytest.mark.parametrize(
    ("network", "inputs", "axes", "other", "ran_before"),
    [
        (Grid(), PICTURES, HEIGHT_AND_WIDTH, (5, 3, 11, 6), ()),
        (Grid(), PICTURES, HEIGHT_AND_WIDTH, (5, 3, 11, 6), (2,)),
        (Grid(), PICTURES, None, (7, 3, 8, 8), (2, 5)),
        (Positions(), STEPS, LENGTH, (3, 13, 4), ()),
        (Mask(), STEPS, LENGTH, (3, 9, 4), ()),
        (Mask(), STEPS, LENGTH, (3, 9, 4), (2, 5)),
        (ByLength(), STEPS, LENGTH, (3, 9, 4), (2, 5)),
        (ByFunction(), STEPS, LENGTH, (3, 9, 4), (2,)),
    ],
    ids=[
        "grid",
        "grid ran",
        "grid ran on others",
        "table",
        "buffer",
        "buffer ran",
        "dict ran",
        "lru_cache ran",
    ],
)
def test_what_a_network_keeps_by_shape_is_in_no_file(network, inputs, axes, other, ran_before, tmp_path):
    for rows in ran_before:  # by the user, in training; the last batch of another size than the example
        network(inputs[0][torch.arange(rows) % 2])
    result = export_model(network, inputs, tmp_path, name="m", dynamic_axes=axes)
    x = torch.randn(*other)
    want = network.eval()(x)
    got = load_torchscript(result.torchscript_path)(x)
    assert torch.allclose(got, want, rtol=1e-4, atol=1e-5)  # the promise of the export in float32


def test_an_export_leaves_what_the_users_network_keeps(tmp_path):
    network = Grid()
    network(pictures(4))
    grid = network.grid
    export_model(network, (pictures(),), tmp_path, name="m")
    assert network.shape == (4, 6, 4, 4)
    assert network.grid is grid


def test_numbers_that_answers_depend_on_are_not_emptied():
    class Scaled(Grid):
        def __init__(self):
            super().__init__()
            self.scale = 3.0

        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x) * self.scale
            self.scale = float(self.scale) + 0.0  # written anew, and read: no cache
            return y

    network = eval_copy(Scaled())
    example = read_example(network.module, (pictures(),), None, None)
    assert without_caches(network, example).module.scale == 3.0


@pytest.mark.parametrize("first", [True, False])
def test_a_network_whose_answer_depends_on_the_last_request_is_refused(first, tmp_path):
    class Remembers(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = None
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            y = x * self.calls if first or self.last is None else x + self.last.mean()
            self.last = x
            return y

    with pytest.raises(NotCapturable, match=r"keeps state between calls|depends on the other rows"):
        export_model(Remembers(), (torch.randn(2, 4),), tmp_path, name="m")


def test_a_fresh_copy_shares_parameters_and_nothing_else():
    network = Grid()
    network.register_buffer("seen", torch.zeros(3))
    copied = fresh_copy(network)
    copied(pictures())
    assert copied.conv.weight is network.conv.weight
    assert copied.seen.data_ptr() != network.seen.data_ptr()
    assert network.shape is None


def test_sizes_are_no_keys_outside_of_a_capture():
    program = torch.export.export(
        nn.Identity(), STEPS, dynamic_shapes=({1: torch.export.Dim("length")},), strict=False
    )
    size = next(n for n in program.graph.nodes if n.op == "placeholder").meta["val"].shape[1]
    with pytest.raises(TypeError, match="unhashable"):
        hash(size)
