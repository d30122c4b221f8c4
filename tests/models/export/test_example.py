import pytest
import torch
from torch import nn

from models.errors import BadExample
from models.export.example import read_example
from tests.models.export.support import Fn, pictures


class Two(nn.Module):
    def forward(self, x, mask):
        return x * mask


class Star(nn.Module):
    def forward(self, x, *more):
        return x + sum(more)


def test_names_come_from_forward_and_from_the_keys_of_nested_inputs():
    x = torch.zeros(2, 3)
    assert read_example(Two(), (x, x), None, None).names == ("x", "mask")
    assert read_example(Star(), (x, x, x), None, None).names == ("x", "more_0", "more_1")
    assert read_example(Fn(lambda d: d), ({"a": x, "b": [x, x]},), None, None).names == (
        "x_a",
        "x_b_0",
        "x_b_1",
    )


def test_a_dynamic_axis_of_size_one_is_widened_since_torch_would_fix_it():
    example = read_example(Two(), (torch.ones(1, 1), torch.ones(1, 3)), {"x": {1: "length"}}, None)
    assert [tuple(t.shape) for t in example.tensors] == [(2, 2), (2, 3)]


def test_dynamic_axes_may_use_the_names_of_the_artifact_or_of_forward():
    x = torch.zeros(2, 3)
    for key in ("x", "tokens"):
        example = read_example(Two(), (x, x), {key: {-1: "length"}}, ["tokens", "mask"])
        assert example.axes == ({0: "rows", 1: "length"}, {0: "rows"})


X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("inputs", "axes", "names", "message"),
    [
        (X, None, None, r"example_inputs is a Tensor; expected a tuple"),
        ((), None, None, r"does not take the 0 example inputs"),
        ((X,), None, None, r"missing a required argument: 'mask'"),
        ((X, X, X), None, None, r"too many positional arguments"),
        ((X, 3), None, None, r"'mask' is 3 \(int\); expected a tensor"),
        ((X, torch.tensor(1.0)), None, None, r"'mask' has no dimensions"),
        ((X, torch.zeros(0, 3)), None, None, r"'mask' has the shape \(0, 3\), with nothing in it"),
        ((X, torch.zeros(3, 3)), None, None, r"different numbers of rows in dim 0: \{'x': 2, 'mask': 3\}"),
        ((X, torch.zeros(2, 3, dtype=torch.complex64)), None, None, r"'mask' is torch.complex64"),
        ((X, X), {"z": {1: "l"}}, None, r"dynamic_axes names the inputs \['z'\]"),
        ((X, X), {"x": {2: "l"}}, None, r"axis 2 of 'x', whose example has the shape \(2, 3\)"),
        ((X, X), {"x": {1: "rows"}}, None, r"expected a name like 'length'"),
        ((X, torch.zeros(2, 4)), {"x": {1: "l"}, "mask": {1: "l"}}, None, r"'l' is 3 at axis 1 of 'x' and 4"),
        ((X, X), None, ["a"], r"input_names is \['a'\]; expected 2 different"),
        ((X, X), None, ["a", "a"], r"expected 2 different"),
    ],
)
def test_an_example_that_does_not_fit_is_refused_by_name(inputs, axes, names, message):
    with pytest.raises(BadExample, match=message):
        read_example(Two(), inputs, axes, names)


def test_half_inputs_become_float32_and_the_users_tensor_stays():
    half = pictures().half()
    assert read_example(Fn(lambda x: x), (half,), None, None).tensors[0].dtype == torch.float32
    assert half.dtype == torch.float16
