"""Signatures as manifests and config.yaml state them: names of dims."""

from typing import Any

import pytest

from service.stated_signature import parse_signature


def stated(**of_the_input: Any) -> dict[str, Any]:
    return {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, -1, 3], **of_the_input}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}],
    }


@pytest.mark.parametrize(
    ("given", "dims"),
    [
        ({}, ("", "", "")),
        ({"shape": [-1, "seq", 3]}, ("", "seq", "")),
        ({"shape": ["N", "seq", 3]}, ("N", "seq", "")),
        ({"dims": ["rows", "8*_length", None]}, ("rows", "8*_length", "")),
    ],
)
def test_dims_have_the_names_that_the_shape_or_the_export_gives_them(
    given: dict[str, Any], dims: tuple[str, ...]
) -> None:
    (spec,) = parse_signature(stated(**given)).inputs
    assert spec.shape == (-1, -1, 3)
    assert spec.dims == dims


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"dims": ["rows", "seq"]},
            r"inputs\[0\].dims is .*; expected a list with a name, or null, for each of the 3",
        ),
        ({"dims": "seq"}, "dims is 'seq'"),
        ({"dims": [1, 2, 3]}, "dims is"),
        ({"dims": [None, "", None]}, "dims is"),
        ({"shape": [-1, "", 3]}, "shape is"),
        ({"shape": [-1, "s" * 300, 3]}, "shape is"),
        ({"shape": [-1, None, 3]}, "or a name for a size that all dims of that name share"),
    ],
)
def test_names_that_are_none_are_refused_with_what_was_expected(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_signature(stated(**given))
