"""The datatypes that foldserve serves: the Open Inference Protocol's word, numpy's type, ONNX's name.

One table, read by everything that turns one into another. BYTES (strings) and BF16 are left out on
purpose: numpy has no bfloat16 and no network that foldserve exports takes strings, so a model that needs
them is refused when it is loaded, not when it is first called.
"""

from typing import Final

import numpy as np

from foldserve.service.errors import ConfigError

# OIP word -> (numpy type, ONNX element type as onnxruntime spells it)
_TABLE: Final[dict[str, tuple[type[np.generic], str]]] = {
    "BOOL": (np.bool_, "tensor(bool)"),
    "UINT8": (np.uint8, "tensor(uint8)"),
    "UINT16": (np.uint16, "tensor(uint16)"),
    "UINT32": (np.uint32, "tensor(uint32)"),
    "UINT64": (np.uint64, "tensor(uint64)"),
    "INT8": (np.int8, "tensor(int8)"),
    "INT16": (np.int16, "tensor(int16)"),
    "INT32": (np.int32, "tensor(int32)"),
    "INT64": (np.int64, "tensor(int64)"),
    "FP16": (np.float16, "tensor(float16)"),
    "FP32": (np.float32, "tensor(float)"),
    "FP64": (np.float64, "tensor(double)"),
}
# Little-endian is the order on the wire (OIP, binary tensor extension) and in memory on all platforms served.
_DTYPES: Final = {word: np.dtype(kind).newbyteorder("<") for word, (kind, _) in _TABLE.items()}
_BY_DTYPE: Final = {dtype: word for word, dtype in _DTYPES.items()}
_BY_ONNX: Final = {onnx: word for word, (_, onnx) in _TABLE.items()}

DATATYPES: Final[tuple[str, ...]] = tuple(_TABLE)


def numpy_dtype(word: str) -> np.dtype[np.generic]:
    """The little-endian numpy dtype of an OIP word. Raises ConfigError for a word that is not served."""
    try:
        return _DTYPES[word]
    except KeyError:
        raise ConfigError(_not_served(f"datatype {word!r}")) from None


def itemsize(word: str) -> int:
    """Bytes of one element. Raises ConfigError for a word that is not served."""
    return numpy_dtype(word).itemsize


def word_for(dtype: np.dtype[np.generic]) -> str:
    """The OIP word of a numpy dtype of any byte order. Raises ConfigError when there is none."""
    try:
        return _BY_DTYPE[dtype.newbyteorder("<")]
    except KeyError:
        raise ConfigError(_not_served(f"numpy type {dtype}")) from None


def word_for_onnx(elem_type: str) -> str:
    """The OIP word of an ONNX type as onnxruntime names it, "tensor(float)".

    Raises: ConfigError when there is none.
    """
    try:
        return _BY_ONNX[elem_type]
    except KeyError:
        raise ConfigError(_not_served(f"ONNX type {elem_type}")) from None


def is_served(dtype: np.dtype[np.generic]) -> bool:
    """Whether arrays of this dtype (any byte order) can be an input or an output."""
    return dtype.newbyteorder("<") in _BY_DTYPE


def _not_served(what: str) -> str:
    fix = "export the network with inputs and outputs of one of these, and cast inside the graph"
    return f"{what} cannot be served: expected one of {', '.join(DATATYPES)}; {fix}"
