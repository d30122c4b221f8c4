import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from foldserve.models.errors import BadExample
from foldserve.models.export.network.example.example import read_example
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
        (
            (X, object()),
            None,
            None,
            r"'mask' is a object; expected tensors or numpy arrays, or Python values",
        ),
        ((3, 4.0), None, None, r"there is no tensor among example_inputs"),
        ((X, torch.tensor(1.0)), None, None, r"'mask' has no dimensions.* or give a Python number"),
        ((X, X.to("meta")), None, None, r"'mask' is on the device 'meta' and has no values"),
        ((X, X.to_sparse()), None, None, r"'mask' is torch.float32, torch.sparse_coo; expected a dense"),
        ((X, np.array(["a", "b"])), None, None, r"'mask' is a numpy array of <U1; expected numbers"),
        ((X, torch.zeros(0, 3)), None, None, r"'mask' has the shape \(0, 3\), with nothing in it"),
        ((X, torch.zeros(3, 3)), None, None, r"different numbers of rows in dim 0: \{'x': 2, 'mask': 3\}"),
        ((X, torch.zeros(2, 3, dtype=torch.complex64)), None, None, r"'mask' is torch.complex64"),
        ((X, X), {"z": {1: "l"}}, None, r"dynamic_axes names the inputs \['z'\]"),
        ((X, X), {"x": {2: "l"}}, None, r"axis 2 of 'x', whose example has the shape \(2, 3\)"),
        (
            (X, X),
            {"x": {1: "a b"}},
            None,
            r"expected a name like 'length', or 'rows' for the axis that counts",
        ),
        ((X, X), {"x": {0: "rows", 1: "rows"}}, None, r"the axes \[0, 1\] of 'x' 'rows'; expected one"),
        (
            (X, X),
            {"x": {1: "rows"}},
            None,
            r"in the dims called 'rows', or else dim 0: \{'x': 3, 'mask': 2\}",
        ),
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


@dataclasses.dataclass
class Batch:
    image: Any
    boxes: Any = None
    scale: float = 2.0


def test_what_is_no_tensor_is_fixed_wherever_it_stands():
    example = read_example(Two(), (Batch(X), {"a": X, "b": [None, "text"]}), None, None)
    assert example.names == ("x_image", "mask_a")
    assert [(one.name, one.value) for one in example.fixed] == [
        ("x_boxes", None),
        ("x_scale", 2.0),
        ("mask_b_0", None),
        ("mask_b_1", "text"),
    ]
    batch, more = example.call(lambda x, mask: (x, mask), [X + 1, X + 2])
    assert torch.equal(batch.image, X + 1)
    assert (batch.boxes, batch.scale) == (None, 2.0)
    assert torch.equal(more["a"], X + 2)
    assert more["b"] == [None, "text"]


def test_a_numpy_number_is_fixed_as_a_python_number():
    (fixed,) = read_example(Two(), (X, np.float32(0.5)), None, None).fixed
    assert (type(fixed.value), fixed.value) == (float, 0.5)


EXAMPLES = {
    "expanded": torch.arange(3.0).expand(2, 3),
    "transposed": torch.arange(6.0).reshape(3, 2).t(),
    "with a gradient": torch.arange(6.0).reshape(2, 3).requires_grad_(),
    "of a computation": torch.arange(6.0).reshape(2, 3).requires_grad_() * 2,
    "a parameter": nn.Parameter(torch.arange(6.0).reshape(2, 3)),
    "numpy": np.arange(6, dtype=np.float32).reshape(2, 3),
    "numpy, backward": np.arange(6, dtype=np.float32).reshape(2, 3)[::-1, ::-1],
    "numpy, big-endian": np.arange(6, dtype=">f4").reshape(2, 3),
    "numpy, read only": np.broadcast_to(np.float32(1), (2, 3)),
}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_an_example_of_any_kind_becomes_a_plain_tensor_that_shares_nothing(kind):
    given: Any = EXAMPLES[kind]
    (tensor,) = read_example(Fn(lambda x: x), (given,), None, None).tensors
    assert (type(tensor), tensor.requires_grad, tensor.is_contiguous()) == (torch.Tensor, False, True)
    numbers = given.detach().numpy() if isinstance(given, torch.Tensor) else given
    assert np.array_equal(tensor.numpy(), numbers)
    tensor.zero_()
    assert numbers.any()


def test_rows_in_another_dim_are_served_in_dim_0_and_given_to_the_network_where_it_has_them():
    x = torch.arange(30.0).reshape(5, 2, 3)
    example = read_example(Fn(lambda x: x), (x,), {"x": {0: "length", 1: "rows"}}, None)
    assert (example.rows_dims, example.axes) == ((1,), ({0: "rows", 1: "length"},))
    (served,) = example.tensors
    assert torch.equal(served, x.transpose(0, 1))
    assert torch.equal(example.call(lambda t: t, [served]), x)
