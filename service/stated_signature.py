"""A signature as a manifest or a config.yaml states it: plain values, of which any may be wrong."""

from typing import Any, Final

from service.documents import shown
from service.errors import ConfigError
from service.signature import ANY, Signature, TensorSpec

_MOST_TENSORS: Final = 256
_MOST_DIMS: Final = 32
_MOST_CHARACTERS: Final = 256
_LARGEST_DIM: Final = 2**40


def parse_signature(value: Any) -> Signature:
    """The signature of {"inputs": [...], "outputs": [...]}. Raises: ValueError: what is wrong, what was expected."""
    if not isinstance(value, dict):
        raise ValueError(f"it is {shown(value)}; expected inputs and outputs")
    try:
        return Signature(_specs(value, "inputs"), _specs(value, "outputs"))
    except ConfigError as error:
        raise ValueError(str(error)) from error


def _specs(value: dict[Any, Any], what: str) -> tuple[TensorSpec, ...]:
    if what not in value:
        raise ValueError(f"{what!r} is missing")
    entries = value[what]
    if not isinstance(entries, list) or len(entries) > _MOST_TENSORS:
        raise ValueError(
            f"{what} is {shown(entries)}; expected a list of at most {_MOST_TENSORS}, with name, datatype and shape"
        )
    return tuple(_spec(entry, f"{what}[{place}]") for place, entry in enumerate(entries))


def _spec(entry: Any, where: str) -> TensorSpec:
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
            f"{where}.shape is {shown(shape)}; expected a list of at most {_MOST_DIMS} whole numbers: -1 for the rows, "
            "then dims of at least 1, or -1 for any size"
        )
    return TensorSpec(name, datatype, tuple(shape))


def _is_dim(dim: Any) -> bool:
    return isinstance(dim, int) and not isinstance(dim, bool) and ANY <= dim <= _LARGEST_DIM
