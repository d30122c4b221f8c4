import io
import sys

import pytest
import torch
from torch import nn

from foldserve.models.errors import BadExample, ExportError, NotCapturable
from foldserve.models.export.capture.capture import capture
from foldserve.models.export.capture.graph_cleanup import where
from foldserve.models.export.capture.tracing.unguarded import without_guards
from foldserve.models.export.network.example.example import read_example
from foldserve.models.export.network.module_copy import eval_copy
from tests.models.export.support import ConvNorm, First, Fn, batches, captured, largest_difference, pictures


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        self.seen += 1
        return x * self.seen


def branch(x):
    if x.sum() > 0:
        return x
    return -x


REFUSED = [
    (
        Fn(branch),
        r"control flow depends on values at test_capture.py, line \d+, in branch: `if x.sum\(\) > 0:`",
    ),
    (Fn(lambda x: x * int(x.sum())), r"control flow depends on values"),
    (Fn(lambda x: x.view(2, -1)), r"fixes the number of rows at that of the example, 2 in dim 0"),
    (Fn(lambda x: torch.stack([row * 2 for row in x])), r"fixes the number of rows"),
    (Fn(lambda x: None), r"forward returns is None; expected a tensor"),
    (Fn(lambda x: x.sum()), r"has the shape \(\); expected dim 0 to be the rows"),
    (Fn(lambda x: x.mean(0)), r"has the shape \(3, 8, 8\); expected dim 0"),
    (Fn(lambda x: torch.cat([x, x])), r"expected dim 0 to be the rows"),
    (Fn(lambda x: x[x > 0]), r"expected dim 0 to be the rows"),
    (Fn(lambda x: torch.fft.rfft(x)), r"is torch.complex64, which no client could be told"),
    (Fn(lambda x: x.bfloat16()), r"is torch.bfloat16, which no client could be told"),
    (Fn(lambda x: x + torch.randn_like(x)), r"draws random numbers, also in eval mode"),
    (Fn(lambda x: nn.functional.dropout(x, 0.5, training=True)), r"dropout.* draws random numbers"),
    (Fn(lambda x: x.numpy()), r"torch.export refuses the network at test_capture.py"),
    (
        Fn(lambda x: torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))),
        r"cond, which holds a graph",
    ),
    (Counter(), r"writes to the buffer 'seen' and its answers depend on it"),
]


@pytest.mark.parametrize(("module", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_served_from_a_file_is_refused_with_the_reason_and_the_mend(module, message):
    with pytest.raises(ExportError, match=message):
        captured(module, pictures())


def test_a_network_that_fails_on_its_example_is_told_in_its_own_words():
    with pytest.raises(
        BadExample, match=r"x: float32 \(2, 5\)\): RuntimeError: mat1 and mat2 shapes cannot be"
    ):
        captured(Fn(lambda x: x @ torch.ones(3, 3)), torch.zeros(2, 5))


class Nested(nn.Module):
    def forward(self, batch, scales):
        return {"sum": batch["a"] + scales[0], "parts": (batch["b"], batch["a"] > 0)}


class Star(nn.Module):
    def forward(self, *args):
        return args[0] + 2 * args[1]


def embedded_length(x):
    return torch.tanh(x.reshape(x.shape[0] * x.shape[1], 4)).reshape(x.shape[0], x.shape[1], 4)


def half_length(x):
    return x + nn.functional.interpolate(nn.functional.avg_pool1d(x, 4), scale_factor=4)


TAKEN = {
    "nested": (Nested(), ({"a": pictures(), "b": pictures()}, [pictures()]), None),
    "star": (Star(), (pictures(), pictures()), None),
    "one row": (ConvNorm(), (pictures(1),), None),
    "in place": (nn.Sequential(ConvNorm(), nn.ReLU(inplace=True)), (pictures(),), None),
    "lstm": (
        First(nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True)),
        (torch.randn(2, 6, 4),),
        "length",
    ),
    "lengths": (Fn(embedded_length), (torch.randn(2, 6, 4),), "length"),
    "multiples of 4": (Fn(half_length), (torch.randn(2, 8, 8),), "length"),
}


@pytest.mark.parametrize("case", TAKEN)
def test_the_graph_answers_like_the_network_for_other_rows_and_sizes(case):
    module, inputs, label = TAKEN[case]
    module.eval()
    graph = captured(module, *inputs, axes={"x": {1: label}} if label else None)
    for rows in (1, 2, 5):
        flat = batches(graph.example_inputs, rows)
        with torch.no_grad():
            got = graph.graph_module(*flat)
            arguments = torch.utils._pytree.tree_unflatten(
                list(flat), torch.utils._pytree.tree_flatten(inputs)[1]
            )
            want = tuple(torch.utils._pytree.tree_leaves(module(*arguments)))
        assert largest_difference(got, want) == 0  # the same ATen kernels on the same numbers


def test_inputs_that_need_not_have_as_many_rows_for_the_network_have_them_all_the_same():
    graph = captured(Nested(), {"a": pictures(), "b": pictures()}, [pictures()])
    assert graph.dynamic_shapes == ({0: "rows"}, {0: "rows"}, {0: "rows"})


def test_output_names_are_y_or_keys_or_numbers():
    assert captured(ConvNorm(), pictures()).output_names == ("y",)
    assert captured(Fn(lambda x: (x, x)), pictures()).output_names == ("y0", "y1")
    graph = captured(Nested(), {"a": pictures(), "b": pictures()}, [pictures()])
    assert graph.output_names == ("sum", "parts_0", "parts_1")


def test_tied_weights_stand_once_in_the_graph():
    table, out = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
    out.weight = table.weight
    graph = captured(nn.Sequential(table, out), torch.tensor([[1, 2], [3, 4]]))
    assert sum(node.op == "get_attr" for node in graph.graph_module.graph.nodes) == 1


def test_writes_that_change_no_answer_are_dropped():
    class Tracks(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x):
            self.seen += 1
            return x.mul_(2)

    x = pictures()
    (got,) = captured(Tracks(), x.clone()).graph_module(x)
    assert torch.equal(got, x * 2)


def test_capture_writes_nothing_to_the_terminal(capfd):
    captured(ConvNorm(), pictures())
    with pytest.raises(NotCapturable):
        captured(Fn(branch), pictures())
    assert capfd.readouterr() == ("", "")
    assert not isinstance(sys.stdout, io.StringIO)


def test_length_that_may_not_fall_to_one_inside_is_captured_with_a_larger_least_length():
    network = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU())
    graph = captured(network, torch.randn(2, 3, 9), axes={"input": {2: "length"}})
    for length in (4, 9, 33):
        assert graph.graph_module(torch.randn(1, 3, length))[0].shape == (1, 4, length - 2)


class Awkward(nn.Module):
    """Parts named as what a graph module has itself, and as our own wrapper of a network names them."""

    def __init__(self):
        super().__init__()
        self.meta, self.graph, self.code, self.network = (nn.Linear(4, 4) for _ in range(4))
        self.register_buffer("inputs_0", torch.randn(4))
        self.plain = torch.randn(4)

    def forward(self, input):
        return self.network(self.code(self.graph(self.meta(input)))) + self.inputs_0 * self.plain


def test_the_graph_has_the_names_of_the_network_whatever_they_are():
    network = Awkward().eval()
    graph = captured(network, torch.randn(2, 4))
    x = torch.randn(3, 4)
    with torch.no_grad():
        assert torch.equal(graph.graph_module(x)[0], network(x))
    nodes = list(graph.graph_module.graph.nodes)
    assert [node.target for node in nodes if node.op == "placeholder"] == ["input"]
    assert "network.weight" in {node.target for node in nodes if node.op == "get_attr"}
    assert [where(node) for node in nodes if node.op == "call_function"][:4] == [
        f"{part} (aten.linear)" for part in ("meta", "graph", "code", "network")
    ]


@pytest.mark.parametrize("names", [["a b", "_a_b"], ["a b", "a/b"], ["class", "input"], ["mul", "é"]])
def test_inputs_may_have_any_names(names):
    class Sum(nn.Module):
        def forward(self, x, y):
            return x + 2 * y

    network = Sum().eval()
    graph = capture(
        eval_copy(network), read_example(network, (torch.ones(2, 1), torch.ones(2, 1)), None, names)
    )
    assert graph.input_names == tuple(names)
    assert graph.graph_module(torch.ones(1, 1), torch.zeros(1, 1))[0].item() == 1


def test_no_code_is_made_of_the_assumptions_while_that_is_left_out():
    class Cropped(nn.Module):
        def forward(self, x):
            return x[:, : x.shape[1] // 2 * 2].unflatten(1, (-1, 2)).sum(2)

    program = torch.export.export(
        Cropped(), (torch.randn(2, 8),), dynamic_shapes=({1: torch.export.Dim.AUTO},)
    )
    assert hasattr(program.module(), "_guards_fn")
    with without_guards():
        assert not hasattr(program.module(), "_guards_fn")
    assert hasattr(program.module(), "_guards_fn")
