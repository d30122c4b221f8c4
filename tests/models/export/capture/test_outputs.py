"""Which parts of what forward returns are answered, on the captured graph; whole exports: test_signatures.py."""

import collections
import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from foldserve.models.errors import NotCapturable
from foldserve.models.export.capture.outputs import LeftOut
from tests.models.export.support import captured


@dataclasses.dataclass
class Answer:
    logits: Any
    loss: Any = None
    hidden: Any = ()


class Head(nn.Module):
    """A linear layer, a learned temperature and a table; what it returns is made by a function of them."""

    def __init__(self, answer):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.temperature = nn.Parameter(torch.tensor(2.5))
        self.register_buffer("anchors", torch.randn(5, 4))
        self.answer = answer

    def forward(self, x):
        return self.answer(self, self.linear(x), x)


X = torch.randn(2, 4)

KEPT = [
    ("a tensor", lambda s, y, x: y, ["y"], []),
    ("None beside it", lambda s, y, x: (y, None), ["y0"], ["y1"]),
    ("None in a dict", lambda s, y, x: {"logits": y, "loss": None}, ["logits"], ["loss"]),
    ("None inside", lambda s, y, x: [y, (x, [None])], ["y0", "y1"], ["y2"]),
    (
        "a dataclass",
        lambda s, y, x: Answer(y, y.mean(), (x, y)),
        ["logits", "hidden_0", "hidden_1"],
        ["loss"],
    ),
    ("a mapping", lambda s, y, x: collections.UserDict(a=y, b=None), ["a"], ["b"]),
    ("a loss", lambda s, y, x: (y, y.square().mean()), ["y0"], ["y1"]),
    ("a loss of one entry", lambda s, y, x: (y, y.mean().reshape(1)), ["y0"], ["y1"]),
    ("a loss in front", lambda s, y, x: (y.mean(), y), ["y1"], ["y0"]),
    ("a constant", lambda s, y, x: (y, s.temperature.exp()), ["y0"], ["y1"]),
    ("a table", lambda s, y, x: (y, s.anchors), ["y0"], ["y1"]),
    ("numbers and text", lambda s, y, x: (y, 3, x.shape[0], "text"), ["y0"], ["y1", "y2", "y3"]),
    ("a random number", lambda s, y, x: (y, torch.randn(())), ["y0"], ["y1"]),
]


@pytest.mark.parametrize(
    ("answer", "kept", "left_out"), [case[1:] for case in KEPT], ids=[c[0] for c in KEPT]
)
def test_what_holds_rows_is_answered_and_the_rest_is_left_out(answer, kept, left_out):
    network = Head(answer)
    graph = captured(network, X)
    assert list(graph.outputs.names) == kept
    assert [one.name for one in graph.outputs.left_out] == left_out
    x = torch.randn(5, 4)
    with torch.no_grad():
        want = graph.outputs.read(network(x))
        got = graph.graph_module(x)
    assert len(got) == len(kept)
    assert all(map(torch.equal, got, want))


def test_what_is_left_out_is_told_with_the_reason_and_the_value_of_a_constant():
    graph = captured(
        Head(lambda s, y, x: {"y": y, "t": s.temperature * 2, "table": s.anchors, "m": y.mean()}), X
    )
    constant = "it is the same for every request, since it depends on no input"
    assert graph.outputs.left_out == (
        LeftOut("t", constant, 5.0),
        LeftOut("table", constant),
        LeftOut(
            "m",
            "it is one number for the whole batch, which holds the rows of many requests; see --rows together",
        ),
    )


def test_no_value_is_told_of_a_number_that_is_drawn():
    graph = captured(Head(lambda s, y, x: (y, torch.randn(()))), X)
    assert graph.outputs.left_out[0].value is None


def test_a_constant_that_json_does_not_hold_is_told_as_text():
    graph = captured(Head(lambda s, y, x: (y, s.temperature.log() * 0 - torch.inf)), X)
    assert graph.outputs.left_out[0].value == "-inf"


def test_nothing_of_what_is_left_out_stays_in_the_graph():
    graph = captured(Head(lambda s, y, x: (x * 2, y.mean(), s.anchors)), X)
    assert [node for node in graph.graph_module.graph.nodes if node.op == "get_attr"] == []


MOVED = [
    ("matrix", lambda x: x.t(), (4, 2)),
    ("time first", lambda x: x[None].expand(3, -1, -1) * 2, (3, 2, 4)),
    ("last", lambda x: x.t().reshape(2, 2, -1), (2, 2, 2)),
]


@pytest.mark.parametrize(("answer", "shape"), [case[1:] for case in MOVED], ids=[case[0] for case in MOVED])
def test_rows_in_another_dim_come_to_dim_0_and_the_others_keep_their_order(answer, shape):
    graph = captured(Head(lambda s, y, x: (answer(x), y)), X)
    dim = graph.outputs.kept[0].rows_dim
    with torch.no_grad():
        for rows in (1, 2, 5):
            x = torch.randn(rows, 4)
            assert torch.equal(graph.graph_module(x)[0], answer(x).movedim(dim, 0))


REFUSED = [
    (
        lambda s, y, x: (y, x.mean(0)),
        r"output 'y1' of forward has the shape \(4\); .* or leave it out of what forward",
    ),
    (
        lambda s, y, x: (y, x.reshape(-1, 2)),
        r"output 'y1' of forward has the shape \(2\*.*, 2\); expected dim 0",
    ),
    (lambda s, y, x: (y, x[x > 0]), r"output 'y1' of forward has the shape \(u0\); expected dim 0"),
    (
        lambda s, y, x: (y, x[None, :] @ x.t()[None]),
        r"has the shape \(1, rows, rows\); expected dim 0 .* one other dim",
    ),
    (lambda s, y, x: {"a": y, "b": object()}, r"output 'b' of forward is a object; expected tensors in"),
    (lambda s, y, x: {"a": y, "b": y + 0j}, r"output 'b' of forward is torch.complex64, which no client"),
    (lambda s, y, x: (), r"forward returns nothing"),
    (lambda s, y, x: (None, 3), r"output 'y0' of forward is None; expected a tensor with the rows in dim 0"),
    (lambda s, y, x: (None, y.mean()), r"output 'y1' of forward has the shape \(\); expected dim 0"),
    (lambda s, y, x: s.anchors, r"what forward returns has the shape \(5, 4\); expected dim 0"),
]


@pytest.mark.parametrize(("answer", "message"), REFUSED, ids=range(len(REFUSED)))
def test_an_answer_that_no_request_could_be_given_is_refused_by_name(answer, message):
    with pytest.raises(NotCapturable, match=message):
        captured(Head(answer), X)


def test_answer_whose_size_hangs_on_values_is_refused_also_where_the_example_makes_it_one_number():
    x = -torch.ones(2, 4)
    x[1, 2] = 1.0
    with pytest.raises(NotCapturable, match=r"output 'y1' of forward has the shape \(u0\); expected dim 0"):
        captured(Head(lambda s, y, x: (y, x[x > 0])), x)
