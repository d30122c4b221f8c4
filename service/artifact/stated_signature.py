"""A signature as a manifest or a config.yaml states it: plain values, of which any may be wrong."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from foldserve.service.artifact.dims import DimLink, DimRange
from foldserve.service.artifact.signature import ANY, Signature, TensorSpec
from foldserve.service.documents import shown
from foldserve.service.errors import ConfigError

_MOST_TENSORS: Final = 256
_MOST_DIMS: Final = 32
_MOST_CHARACTERS: Final = 256
_LARGEST_DIM: Final = 2**40
_NAMES_SHOWN: Final = 10


def parse_signature(value: Any, counts_rows: bool = True) -> Signature:
    """The signature of {"inputs": [...], "outputs": [...]}. Raises: ValueError: what is wrong, what was expected.

    Args:
        counts_rows: whether dim 0 is to count rows.
    """
    if not isinstance(value, dict):
        raise ValueError(f"it is {shown(value)}; expected inputs and outputs")
    try:
        return Signature(_specs(value, "inputs", counts_rows), _specs(value, "outputs", counts_rows))
    except ConfigError as error:
        raise ValueError(str(error)) from error


def with_sizes(signature: Signature, dims: Mapping[str, Mapping[str, Any]]) -> Signature:
    """The signature with what a manifest's `dims` say of the inputs' dims; manifest.py has looked at their types.

    Raises: ValueError when a range holds no size, or a name is of no input's dim: it would be checked of nothing.
    """
    names = {name for spec in signature.inputs for name in spec.dims if name}
    ranges: dict[str, DimRange] = {}
    links: list[DimLink] = []
    for name, stated in dims.items():
        if name not in names:
            raise ValueError(
                f"dims.{shown(name)}, and no input has a dim of that name; expected {_one_of(names)}"
            )
        allowed = DimRange(stated["min"], stated["max"], stated["multiple_of"])
        if not allowed.takes(allowed.near(1)):
            raise ValueError(f"dims.{name} is {shown(stated)}; expected a range that holds a size")
        if allowed != DimRange():
            ranges[name] = allowed
        if "equals" in stated:
            other = stated["equals"]
            if other["dim"] not in names - {name}:
                raise ValueError(
                    f"dims.{name}.equals.dim {shown(other['dim'])}; expected another dim: {_one_of(names - {name})}"
                )
            links.append(DimLink(name, other["dim"], other["times"], other["plus"]))
    inputs = tuple(
        spec
        if ranges.keys().isdisjoint(spec.dims)
        else replace(spec, ranges=tuple(map(ranges.get, spec.dims)))
        for spec in signature.inputs
    )
    return replace(signature, inputs=inputs, links=tuple(links))


def _one_of(names: set[str]) -> str:
    return (
        f"one of {', '.join(map(shown, sorted(names)[:_NAMES_SHOWN]))}"
        if names
        else "none, for no dim is named"
    )


def _specs(value: dict[Any, Any], what: str, counts_rows: bool) -> tuple[TensorSpec, ...]:
    if what not in value:
        raise ValueError(f"{what!r} is missing")
    entries = value[what]
    if not isinstance(entries, list) or len(entries) > _MOST_TENSORS:
        raise ValueError(
            f"{what} is {shown(entries)}; expected a list of at most {_MOST_TENSORS}, with name, datatype and shape"
        )
    return tuple(_spec(entry, f"{what}[{place}]", counts_rows) for place, entry in enumerate(entries))


def _spec(entry: Any, where: str, counts_rows: bool) -> TensorSpec:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is {shown(entry)}; expected name, datatype and shape")
    missing = [key for key in ("name", "datatype", "shape") if key not in entry]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(map(repr, missing))}; expected name, datatype and shape")
    name, datatype, shape = entry["name"], entry["datatype"], entry["shape"]
    if not isinstance(name, str) or not 0 < len(name) <= _MOST_CHARACTERS:
        raise ValueError(
            f"{where}.name is {shown(name)}; expected a text of 1 to {_MOST_CHARACTERS} characters"
        )
    if not isinstance(datatype, str) or len(datatype) > _MOST_CHARACTERS:
        raise ValueError(f"{where}.datatype is {shown(datatype)}; expected a text such as FP32")
    if not isinstance(shape, list) or len(shape) > _MOST_DIMS or not all(map(_is_dim, shape)):
        raise ValueError(
            f"{where}.shape is {shown(shape)}; expected a list of at most {_MOST_DIMS} dims: -1 for the rows, where "
            "the model counts any, then whole numbers of at least 1, -1 for any size, or a name for a size that all "
            "dims of that name share"
        )
    sizes = tuple(ANY if isinstance(dim, str) else dim for dim in shape)
    return TensorSpec(name, datatype, sizes, _names(entry, shape, where), counts_rows=counts_rows)


def _names(entry: dict[Any, Any], shape: list[Any], where: str) -> tuple[str, ...]:
    """The names of the dims: in `dims`, where the export writes them, or in the shape itself."""
    named = entry.get("dims", [dim if isinstance(dim, str) else None for dim in shape])
    if (
        not isinstance(named, list)
        or len(named) != len(shape)
        or not all(name is None or (isinstance(name, str) and _is_dim(name)) for name in named)
    ):
        raise ValueError(
            f"{where}.dims is {shown(named)}; expected a list with a name, or null, for each of the {len(shape)} dims"
        )
    return tuple(name or "" for name in named)


def _is_dim(dim: Any) -> bool:
    if isinstance(dim, str):
        return 0 < len(dim) <= _MOST_CHARACTERS
    return isinstance(dim, int) and not isinstance(dim, bool) and ANY <= dim <= _LARGEST_DIM
