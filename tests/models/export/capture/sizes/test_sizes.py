"""What a capture assumes of the sizes: no form of it is dropped, and inside the ranges the graph is the network."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from foldserve.models.errors import BadExample, NotCapturable, ParityFailed
from foldserve.models.export import export_model
from foldserve.models.export.capture.capture import CapturedGraph
from foldserve.models.export.capture.sizes.sizes import ANY_SIZE, Narrowed, SizeRange, Sizes
from foldserve.models.export.fold import driver
from foldserve.models.export.writers.torchscript_writer import load_torchscript, run_torchscript
from foldserve.service.artifact.manifest import DimEntry, DimEquals
from tests.models.export.support import Fn, captured

TABLE = torch.arange(50.0)[:, None].expand(50, 4) / 50


def longest(x: Tensor) -> Tensor:
    if x.shape[1] > 64:
        x = x[:, -64:]
    return x.mean(1)


def shortest(x: Tensor) -> Tensor:
    if x.shape[1] < 8:
        x = functional.pad(x, (0, 0, 0, 8))
    return x.mean(1)


def between(x: Tensor) -> Tensor:
    return x.mean(1) if 8 <= x.shape[1] <= 40 else x.sum(1)


def one_size(x: Tensor) -> Tensor:
    return x.sum(1) if x.shape[1] == 700 else x.mean(1)


def far_size(x: Tensor) -> Tensor:
    return x.sum(1) if x.shape[1] == 5000 else x.mean(1)


def even_in_fours(x: Tensor) -> Tensor:
    return x.mean(1) if x.shape[1] % 4 == 0 else x.sum(1)


def padded(x: Tensor) -> Tensor:
    return functional.pad(x, (0, 0, 0, (8 - x.shape[1] % 8) % 8)).mean(1)


def windows(x: Tensor) -> Tensor:
    rows, length, width = x.shape
    return x.view(rows, length // 8, 8, width).mean(2).amax(1)


def halves(x: Tensor) -> Tensor:
    middle = x.shape[1] // 2
    return (x[:, :middle] * x[:, middle:]).sum(1)


def every_third(x: Tensor) -> Tensor:
    return x[:, ::3].mean(1)


def from_the_table(x: Tensor) -> Tensor:
    return (x + TABLE[: x.shape[1]]).mean(1)


def looked_up(x: Tensor) -> Tensor:
    return (x + functional.embedding(torch.arange(x.shape[1]), TABLE)).mean(1)


def at_most(x: Tensor) -> Tensor:
    return x[:, : min(x.shape[1], 20)].mean(1)


def kernel(x: Tensor) -> Tensor:
    return functional.avg_pool1d(x.transpose(1, 2), 5).mean(2)


def first_steps(x: Tensor) -> Tensor:
    return x[:, :4].reshape(x.shape[0], 16)


def pyramid(x: Tensor) -> Tensor:
    fine = functional.avg_pool1d(x.transpose(1, 2), 1, stride=4)
    coarse = functional.avg_pool1d(fine, 1, stride=2)
    return (fine + functional.interpolate(coarse, scale_factor=2)).mean(2)


# Function, length of the example, the range, whether the network takes sizes beyond it.
LENGTHS = [
    (longest, 12, SizeRange(1, 64, 1), True),
    (longest, 100, SizeRange(1, None, 1), False),
    (shortest, 12, SizeRange(8, None, 1), True),
    (between, 12, SizeRange(8, 40, 1), True),
    (one_size, 12, SizeRange(1, 699, 1), True),
    (far_size, 12, SizeRange(1, 4999, 1), True),
    (even_in_fours, 12, SizeRange(4, None, 4), True),
    (padded, 12, SizeRange(1, None, 1), False),
    (windows, 16, SizeRange(8, None, 8), False),
    (halves, 12, SizeRange(2, None, 2), True),
    (pyramid, 16, SizeRange(8, None, 8), True),
    (every_third, 12, SizeRange(1, None, 1), False),
    (from_the_table, 12, SizeRange(1, 50, 1), False),
    (looked_up, 12, SizeRange(1, 50, 1), False),
    (at_most, 12, SizeRange(1, None, 1), False),
    (kernel, 16, SizeRange(5, None, 1), False),
    (first_steps, 12, SizeRange(4, None, 1), False),
]
TRIED = (*range(1, 30), 31, 32, 40, 41, 49, 50, 51, 63, 64, 65, 128)


def agrees(module: nn.Module, graph: CapturedGraph, *inputs: Tensor) -> bool:
    """Whether the graph answers as the network does, to the last bit but of a sum in another order."""
    with torch.no_grad():
        return torch.allclose(graph.graph_module(*inputs)[0], module(*inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "length", "wanted", "narrowed"), LENGTHS, ids=[f"{f.__name__} {n}" for f, n, _, _ in LENGTHS]
)
def test_every_assumption_on_a_length_is_in_its_range_or_did_not_matter(function, length, wanted, narrowed):
    module = Fn(function)
    graph = captured(module, torch.randn(2, length, 4), axes={"x": {1: "length"}})
    assert graph.sizes.ranges == {"length": wanted}
    assert bool(graph.sizes.narrowed) == narrowed
    inside = [size for size in (*TRIED, wanted.least, wanted.most or 1024) if size in wanted]
    assert all(agrees(module, graph, torch.randn(rows, size, 4)) for size in inside for rows in (1, 3))


def larger_side(x: Tensor) -> Tensor:
    return x.mean((2, 3)) if x.shape[2] > x.shape[3] else x.sum((2, 3))


def many_pixels(x: Tensor) -> Tensor:
    return x.mean((2, 3)) if x.shape[2] * x.shape[3] > 2000 else x.sum((2, 3))


def square(x: Tensor) -> Tensor:
    return x.mean((2, 3)) if x.shape[2] == x.shape[3] else x.sum((2, 3))


def not_in_threes(x: Tensor) -> Tensor:
    return x.mean((2, 3)) if x.shape[2] % 3 else x.sum((2, 3))


def few_rows(x: Tensor) -> Tensor:
    return x.sum((2, 3)) if x.shape[0] > 9 else x.mean((2, 3))


def three_rows(x: Tensor) -> Tensor:
    return x.sum((2, 3)) if x.shape[0] == 3 else x.mean((2, 3))


def one_row(x: Tensor) -> Tensor:
    return x.sum((2, 3)) if x.shape[0] == 1 else x.mean((2, 3))


@pytest.mark.parametrize(
    ("function", "sides", "says"),
    [
        (larger_side, (18, 16), "'h', 'w' that hang on each other .*: h > w at test_sizes.py, line"),
        (many_pixels, (16, 18), r"h\*w <= 2000 at test_sizes.py"),
        (square, (16, 18), "h != w at test_sizes.py"),
        (not_in_threes, (16, 18), r"few of the sizes of 'h'.*\(h % 3\) != 0 at test_sizes.py, line"),
        (few_rows, (16, 18), "every number of rows .*rows <= 9 at test_sizes.py"),
        (three_rows, (16, 18), "every number of rows .*rows != 3 at test_sizes.py"),
        (one_row, (16, 18), "every number of rows .*rows >= 2"),
        (lambda x: x.mean((2, 3)) * int(x.shape[2]), (16, 18), "dynamic axis 'h': it fixes it at 16"),
    ],
)
def test_what_no_range_can_say_is_refused_with_the_assumption_and_the_line(function, sides, says):
    with pytest.raises(NotCapturable, match=says):
        captured(Fn(function), torch.randn(2, 3, *sides), axes={"x": {2: "h", 3: "w"}})


def test_sides_that_are_equal_by_chance_stay_two_where_the_network_does_the_same_for_two():
    def either_way(x: Tensor) -> Tensor:
        return x.mean(3).mean(2) if x.shape[2] == x.shape[3] else x.mean(2).mean(2)

    module = Fn(either_way)
    graph = captured(module, torch.randn(2, 3, 16, 16), axes={"x": {2: "h", 3: "w"}})
    assert graph.sizes.ranges == {"h": SizeRange(1, None, 1), "w": SizeRange(1, None, 1)}
    assert graph.sizes.narrowed == ()
    assert all(agrees(module, graph, torch.randn(1, 3, *sides)) for sides in ((16, 16), (5, 9), (1, 1)))


def test_sides_that_must_be_equal_have_one_name_and_it_is_said():
    graph = captured(Fn(square), torch.randn(2, 3, 16, 16), axes={"x": {2: "h", 3: "w"}})
    assert graph.dynamic_shapes in (({0: "rows", 2: "w", 3: "w"},), ({0: "rows", 2: "h", 3: "h"},))
    (told,) = graph.sizes.narrowed
    assert "with other sizes the network answers otherwise than the files" in told.reason
    assert "if x.shape[2] == x.shape[3]" in told.reason


class Together(nn.Module):
    def __init__(self, skip: int = 0, step: int = 1) -> None:
        super().__init__()
        self.skip, self.step = skip, step

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x[:, self.skip :] + y.repeat_interleave(self.step, dim=1)).mean(1)


def test_inputs_whose_lengths_must_be_equal_share_a_name_and_nothing_is_lost():
    axes = {"x": {1: "a"}, "y": {1: "b"}}
    graph = captured(Together(), torch.randn(2, 12, 4), torch.randn(2, 12, 4), axes=axes)
    assert graph.dynamic_shapes[0] == graph.dynamic_shapes[1]
    assert (len(graph.sizes.ranges), graph.sizes.narrowed) == (1, ())


@pytest.mark.parametrize(("skip", "step", "lengths"), [(1, 1, (13, 12)), (0, 2, (24, 12))])
def test_a_length_that_hangs_on_another_is_stated_as_such(skip, step, lengths):
    axes = {"x": {1: "a"}, "y": {1: "b"}}
    x, y = (torch.randn(2, length, 4) for length in lengths)
    dims = captured(Together(skip, step), x, y, axes=axes).sizes.to_manifest()
    link = DimEquals(dim="b", times=step, plus=skip)
    assert dims["a"] == DimEntry(min=step + skip, max=None, multiple_of=step, equals=link)


class UNet(nn.Module):
    """Halve five times, and come back to the size of each skip."""

    def __init__(self, depth: int = 5) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(3 if i == 0 else 2, 2, 3, 2, 1) for i in range(depth))
        self.up = nn.ModuleList(nn.Conv2d(4, 2, 3, padding=1) for _ in range(depth - 1))

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for layer in self.down:
            x = layer(x).relu()
            skips.append(x)
        skips.pop()
        for layer in self.up:
            skip = skips.pop()
            x = layer(torch.cat([functional.interpolate(x, size=skip.shape[2:]), skip], 1))
        return x


@pytest.mark.parametrize("side", [32, 64])
def test_a_network_that_halves_five_times_takes_any_height_and_width_whatever_the_example(side):
    module = UNet().eval()
    graph = captured(module, torch.randn(2, 3, side, side), axes={"x": {2: "h", 3: "w"}})
    assert graph.sizes.ranges == {"h": SizeRange(1, None, 1), "w": SizeRange(1, None, 1)}
    for sides in itertools.product((1, 2, 17, 33, 40), repeat=2):
        assert agrees(module, graph, torch.randn(1, 3, *sides))


def test_the_files_and_the_manifest_say_what_was_narrowed_unless_all_sizes_are_asked_for(tmp_path):
    x, axes = torch.randn(2, 12, 4), {"x": {1: "length"}}
    report = export_model(Fn(longest), (x,), tmp_path, name="m", dynamic_axes=axes).report
    assert report["dims"] == {"length": {"min": 1, "max": 64, "multiple_of": 1}}
    (told,) = report["narrowed"]
    assert told["dim"] == "length"
    assert "at 65 the network answers otherwise than the files: assumed is length <= 64" in told["reason"]
    with pytest.raises(
        NotCapturable, match=r"all sizes were asked for.*'length': 1 to 64; at 65 .*--all-sizes"
    ):
        export_model(Fn(longest), (x,), tmp_path, name="m", version=2, dynamic_axes=axes, all_sizes=True)
    assert not (tmp_path / "m" / "2").exists()


def test_all_sizes_may_be_asked_of_a_network_that_itself_takes_no_more(tmp_path):
    x, axes = torch.randn(2, 12, 4), {"x": {1: "length"}}
    done = export_model(Fn(from_the_table), (x,), tmp_path, name="m", dynamic_axes=axes, all_sizes=True)
    assert done.report["dims"] == {"length": {"min": 1, "max": 50, "multiple_of": 1}}


def test_the_edges_at_which_files_are_proved_are_in_range_and_unequal_somewhere():
    sizes = Sizes(
        {"h": SizeRange(8, None, 8), "w": SizeRange(3, 40, 1)},
        {},
        {"v": "h"},
        (Narrowed("w", "because"),),
    )
    edges = sizes.edges({"rows": 2, "h": 32, "w": 32, "v": 32})
    assert edges[:2] == ({"h": 8, "w": 3, "v": 8}, {"h": 64, "w": 40, "v": 64})
    assert all(edge["h"] in sizes.ranges["h"] and edge["w"] in sizes.ranges["w"] for edge in edges)
    assert any(edge["h"] != edge["w"] for edge in edges[2:])
    assert ANY_SIZE.edges({"rows": 2}) == ()


def test_an_example_outside_of_the_only_range_is_refused_with_the_range():
    sizes = Sizes({"length": SizeRange(9, None, 1)}, {}, {}, ())
    with pytest.raises(BadExample, match=r"the example's 'length' is 8.* 9 or more"):
        sizes.check_example({"rows": 2, "length": 8})


def test_a_slice_beyond_the_example_is_no_slice_of_everything(tmp_path):
    network = Fn(lambda x: x[:, :20].mean(1) + x[:, -20:].sum(1))
    result = export_model(network, (torch.randn(3, 10, 6),), tmp_path, name="m", dynamic_axes={"x": {1: "t"}})
    served = load_torchscript(result.torchscript_path)
    for steps in (1, 10, 20, 21, 31):
        x = torch.randn(2, steps, 6)
        torch.testing.assert_close(
            run_torchscript(served, (x,)), (network(x),)
        )  # float32, two orders of the same sums


def test_a_file_that_relies_on_a_released_assumption_is_caught_where_it_does_not_hold(tmp_path, monkeypatch):
    """The captured graph is right beyond 20 steps; one made of it that takes the slice for everything is not."""
    monkeypatch.setattr(driver, "_takes_everything", lambda values: values["step"] == 1)
    network = Fn(lambda x: x[:, :20].mean(1) + x[:, -20:].sum(1))
    with pytest.raises(ParityFailed):
        export_model(network, (torch.randn(3, 10, 6),), tmp_path, name="m", dynamic_axes={"x": {1: "t"}})
    assert list(tmp_path.iterdir()) == []
