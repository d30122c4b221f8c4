from typing import Any

import pytest
import torch
from torch import nn

from foldserve.models.errors import BadExample
from foldserve.models.export.network.example.arguments import arranged, bind


class By(nn.Module):
    """A module whose forward is the function."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


def keyword_only(*, image, mask=None):
    return image, mask


def every_kind(first, /, x, mask=None, *rest, scale=1.0, **more):
    return first, x, mask, rest, scale, more


def optional(x, mask=None, y=None):
    return x, mask, y


GIVEN = [
    (keyword_only, {"image": 1}, ["image"], (1, None)),
    (keyword_only, {"image": 1, "mask": 2}, ["image", "mask"], (1, 2)),
    (optional, (1, None, 3), ["x", "mask", "y"], (1, None, 3)),
    (optional, {"y": 3, "x": 1}, ["x", "y"], (1, None, 3)),
    (every_kind, (1, 2), ["first", "x"], (1, 2, None, (), 1.0, {})),
    (every_kind, (1, 2, 3, 4, 5), ["first", "x", "mask", "rest_0", "rest_1"], (1, 2, 3, (4, 5), 1.0, {})),
    (
        every_kind,
        {"first": 1, "x": 2, "rest": (4,), "scale": 5.0, "other": {"a": 6}},
        ["first", "x", "mask", "rest_0", "scale", "other_a"],
        (1, 2, None, (4,), 5.0, {"other": {"a": 6}}),
    ),
    (lambda **batch: batch, {"ids": 1, "mask": 2}, ["ids", "mask"], {"ids": 1, "mask": 2}),
]


@pytest.mark.parametrize(("forward", "given", "names", "received"), GIVEN, ids=range(len(GIVEN)))
def test_arguments_reach_their_parameters_and_are_named_after_them(forward, given, names, received):
    arguments = bind(By(forward), given)
    named = arguments.named_leaves()
    assert [name for name, _ in named] == names
    assert arguments.call(forward, [leaf for _, leaf in named]) == received


@pytest.mark.parametrize(
    ("forward", "given", "message"),
    [
        (
            optional,
            torch.zeros(2),
            r"example_inputs is a Tensor; expected a tuple .* or a dict by their names",
        ),
        (optional, {"x": 1, "z": 2}, r"unexpected keyword argument 'z'"),
        (optional, {"mask": 1}, r"missing a required argument: 'x'"),
        (every_kind, {"first": 1, "rest": (2,)}, r"missing a required argument: 'x'"),
        (
            keyword_only,
            (1,),
            r"too many positional arguments\. Inputs .* by name alone \(image, mask\) go into a dict",
        ),
    ],
)
def test_arguments_that_forward_does_not_take_are_refused_with_the_mend(forward, given, message):
    with pytest.raises(BadExample, match=message):
        bind(By(forward), given)


@pytest.mark.parametrize(
    ("forward", "names", "by_name"),
    [
        (optional, ("x", "y"), True),
        (optional, ("y", "x"), True),
        (optional, ("image", "mask"), False),
        (keyword_only, ("mask", "image"), True),
        (lambda **batch: batch, ("a", "b"), True),
        (lambda *args, **batch: batch, ("a", "b"), False),
        (lambda x, **more: x, ("x", "b"), True),
        (lambda x, **more: x, ("a", "b"), False),
    ],
)
def test_described_inputs_go_by_name_where_forward_knows_every_name(forward, names, by_name):
    wanted: tuple[Any, ...] = ({names[0]: 1, names[1]: 2}, {}, None) if by_name else ((1, 2), {}, names)
    assert arranged(By(forward), (1, 2), {}, names) == wanted
