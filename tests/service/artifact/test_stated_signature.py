"""Signatures as manifests and config.yaml state them: names of dims, and the sizes that they may have."""

from typing import Any

import pytest

from foldserve.service.artifact.dims import DimLink, DimRange
from foldserve.service.artifact.stated_signature import parse_signature, with_sizes


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


def sizes(least: int, most: int | None, multiple_of: int, **more: Any) -> dict[str, Any]:
    return {"min": least, "max": most, "multiple_of": multiple_of, **more}


def test_ranges_of_a_manifest_stand_at_the_dims_of_their_names() -> None:
    plain = parse_signature(stated(shape=[-1, -1, -1, -1], dims=["rows", "length", "free", "other"]))
    signature = with_sizes(
        plain,
        {
            "length": sizes(8, 64, 8),
            "free": sizes(1, None, 1),
            "other": sizes(9, 65, 1, equals={"dim": "length", "times": 1, "plus": 1}),
        },
    )
    assert signature.inputs[0].ranges == (None, DimRange(8, 64, 8), None, DimRange(9, 65))
    assert signature.links == (DimLink("other", "length", 1, 1),)
    assert signature.counting_rows(True) == signature
    assert signature.counting_rows(True).links == signature.links
    assert with_sizes(plain, {}).inputs[0].ranges == ()


@pytest.mark.parametrize("bad", [sizes(9, 8, 1), sizes(1, 7, 8), sizes(9, 15, 8)])
def test_a_range_that_holds_no_size_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"dims.length is .*; expected a range that holds a size"):
        with_sizes(parse_signature(stated(dims=["rows", "length", None])), {"length": bad})


@pytest.mark.parametrize(
    ("dims", "says"),
    [
        ({"lenght": sizes(8, 64, 8)}, "dims.'lenght', and no input has .* expected one of 'length', 'rows'"),
        (
            {"length": sizes(8, 64, 8, equals={"dim": "lenght", "times": 2, "plus": 0})},
            "dims.length.equals.dim 'lenght'; expected another dim: one of 'rows'",
        ),
        (
            {"length": sizes(8, 64, 8, equals={"dim": "length", "times": 1, "plus": 0})},
            "dims.length.equals.dim 'length'; expected another dim",
        ),
    ],
)
def test_a_range_or_a_link_that_would_be_checked_of_nothing_is_refused(
    dims: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        with_sizes(parse_signature(stated(dims=["rows", "length", None])), dims)
