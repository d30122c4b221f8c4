"""What an ONNX file says of its inputs and outputs, against what it is served as.

Without running it: onnxruntime's own inference of shapes has been over the file when it is opened.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from foldserve.service.artifact.datatypes import word_for_onnx
from foldserve.service.artifact.signature import ANY, ONE_BY_ONE, TensorSpec
from foldserve.service.backends.base import LoadError
from foldserve.service.errors import ConfigError

SIZED_BY_VALUES: Final = frozenset({"NonZero", "Unique", "Compress", "NonMaxSuppression", "Loop"})
"""Operators whose outputs are as many as there are values of a kind (a Loop's: as its condition lets pass)."""


def check_tensors(path: Path, what: str, expected: Mapping[str, TensorSpec], got: Sequence[Any]) -> None:
    """Raise LoadError unless the file's inputs (or outputs) are those of the signature, in datatype and shape too."""
    names = [tensor.name for tensor in got]
    if set(expected) != set(names):
        raise LoadError(
            f"{path} has the {what}s {', '.join(names)}; expected {', '.join(expected)}, as the manifest says: "
            "export it again"
        )
    for tensor in got:
        spec = expected[tensor.name]
        if _word(tensor.type) != spec.datatype or not _may_be(what, tensor.shape, spec.shape):
            raise LoadError(
                f"{path} has {what} {tensor.name!r} as {tensor.type} {_shown(tensor.shape)}; expected {spec.datatype} "
                f"{list(spec.shape)}, as the manifest or config.yaml says: fix the signature there, or export the "
                "model again"
            )


def check_dim_names(path: Path, session: Any) -> None:
    """Raise LoadError when an output's dim 0 has another name than the inputs', and an operator sizes it by values.

    The names alone tell too little: converters often make them up for outputs. Without such an operator sizes follow
    from the inputs' sizes, and running a few batches shows it (repository/row_check.py).
    """
    rows = {tensor.shape[0] for tensor in session.get_inputs() if tensor.shape}
    if not all(isinstance(name, str) for name in rows):
        return  # not named, so nothing can differ
    others = [
        tensor
        for tensor in session.get_outputs()
        if tensor.shape and isinstance(tensor.shape[0], str) and tensor.shape[0] not in rows
    ]
    choosing = sorted(_operators(session) & SIZED_BY_VALUES)
    if others and choosing:
        raise LoadError(
            f"{path}: dim 0 of output {others[0].name!r} is named {others[0].shape[0]!r}, that of the inputs "
            f"{', '.join(map(repr, sorted(rows)))}, and the model has operators that size their outputs by values "
            f"({', '.join(choosing)}): so it does not count rows, and the answers of requests that are run together "
            "could not be separated; expected one name: name the dims alike if they are equal, export the model with "
            f"an output for each row, or {ONE_BY_ONE}"
        )


def _operators(session: Any) -> set[str]:
    """The kinds of all operators of an opened model, in its branches and loops too; none where that is not recorded."""
    try:
        parts = session.get_provider_graph_assignment_info()
    except Exception:  # a build of onnxruntime that does not record it
        return set()
    return {str(node.op_type) for part in parts for node in part.get_nodes()}


def _word(elem_type: str) -> str:
    try:
        return word_for_onnx(elem_type)
    except ConfigError:
        return ""


def _may_be(what: str, file: Sequence[Any] | None, wanted: Sequence[int]) -> bool:
    """Whether a tensor of the file's shape may be one of the wanted shape."""
    if not file:  # of any rank, as far as the file tells
        return True
    if len(file) != len(wanted):
        return False
    for has, want in zip(file, wanted, strict=True):
        fixed = isinstance(has, int) and has >= 0
        # An input of any size that the file takes in one size only would fail on the rest.
        if fixed and has != want and (what == "input" or want != ANY):
            return False
    return True


def _shown(shape: Sequence[Any]) -> str:
    return f"[{', '.join(map(str, shape))}]"
