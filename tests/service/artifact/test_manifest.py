"""The manifest is one schema: what the export writes by it, the server reads by it, and nothing is lost between."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.service.artifact.json_schema import ALWAYS, OneOf, Whole, from_json, problems_of, to_json
from foldserve.service.artifact.manifest import (
    LARGEST_BATCH,
    Manifest,
    TensorEntry,
    check_error,
    check_file_names,
    check_image,
    check_largest_batch,
    check_scalar,
    check_sha256,
    check_tensors,
    read_manifest,
)
from foldserve.service.artifact.pictures import PictureInput

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=5).filter(
    lambda name: name not in (".", "..")
)
PICTURE = PictureInput("x", size=(4, 6)).to_manifest()


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Every value that a type of the schema takes: a field that is added is tried at once."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        checks = [check for check in parts[1:] if check is not ALWAYS]
        return checked_values(parts[0], checks[0]) if checks else values_of(parts[0])
    if origin in (Union, UnionType):
        return st.one_of([st.none() if part is NoneType else values_of(part) for part in parts])
    if origin is tuple:
        return st.lists(values_of(parts[0]), max_size=2).map(tuple)
    if origin is Mapping:
        return st.dictionaries(NAMES, values_of(parts[1]), max_size=2)
    if is_dataclass(kind):
        types = get_type_hints(kind, include_extras=True)
        needed = {one.name for one in fields(kind) if one.default is one.default_factory is MISSING}
        required = {name: values_of(types[name]) for name in needed}
        optional = {name: values_of(own) for name, own in types.items() if name not in needed}
        return st.fixed_dictionaries(required, optional=optional).map(lambda given: kind(**given))
    return {int: st.integers(-1, 2**40), str: st.text(max_size=5)}[kind]


def checked_values(kind: Any, check: Any) -> st.SearchStrategy[Any]:
    if isinstance(check, Whole):
        return st.integers(check.low, check.high)
    if isinstance(check, OneOf):
        return st.sampled_from(check.words)
    return {
        check_error: st.floats(0, allow_infinity=False, allow_nan=False),
        check_sha256: st.text("0123456789abcdef", min_size=64, max_size=64),
        check_scalar: st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text(max_size=5),
        check_largest_batch: st.integers(0, LARGEST_BATCH),
        check_image: st.just({**PICTURE, "inside": {"colour": "RGB", "mean": [0.5]}}),
        check_file_names: st.deferred(lambda: values_of(kind)),
        check_tensors: st.lists(entries(), max_size=2).map(tuple),
    }[check]


def entries() -> st.SearchStrategy[TensorEntry]:
    dims = st.none() | st.lists(st.none() | NAMES, max_size=2).map(tuple)
    shapes = st.lists(st.integers(-1, 2**40), max_size=3).map(tuple)
    return st.builds(
        TensorEntry, name=NAMES, datatype=NAMES, shape=shapes, dims=dims, rows_dim=st.integers(0, 3)
    )


@given(values_of(Manifest))
def test_manifest_that_is_written_and_read_again_is_the_same(manifest: Manifest) -> None:
    content = json.loads(json.dumps(manifest.to_json()))
    assert list(problems_of(Manifest, content, "")) == []
    assert from_json(Manifest, content) == manifest
    assert json.dumps(from_json(Manifest, content).to_json()) == json.dumps(content)


def test_keys_that_a_later_foldserve_adds_are_passed_over() -> None:
    content = {"where": "a", "reason": "b"}
    manifest = least(kept_fp32=[{**content, "since": 5}], later={})
    assert to_json(from_json(Manifest, manifest).kept_fp32) == [content]


def least(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "x", "datatype": "FP32", "shape": [-1, 4]}
    return {
        "format_version": 1, "name": "m", "version": "1", "inputs": [tensor], "outputs": [{**tensor, "name": "y"}],
        "files": {}, "parity": {}, **changes,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"created": None}, "created None; expected a text"),
        ({"image": None}, "image None; expected how a picture"),
        ({"opset": None}, ""),
        (
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1], "rows_dim": -1}]},
            "inputs[0].rows_dim -1",
        ),
        ({"dims": {"n": {"min": 1, "max": None}}}, "no dims.n.multiple_of; expected min, max, multiple_of"),
    ],
)
def test_null_is_a_value_only_where_the_schema_has_it(
    changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    found = list(problems_of(Manifest, least(**changes), ""))
    assert [problem.startswith(told) for problem in found] == [True] * bool(told)


def test_what_no_manifest_says_is_none_or_empty(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(least()))
    manifest = read_manifest(tmp_path, "m/1")
    assert (manifest.created, manifest.memory, manifest.opset, manifest.warnings) == (None, None, None, ())
    assert (manifest.runs_alone, manifest.max_batch_size, manifest.dims) == (False, None, {})
    assert [spec.shape for spec in manifest.signature().inputs] == [(-1, 4)]
