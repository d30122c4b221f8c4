"""An ONNX file as what it computes on the way: its values by the names of the graph that it was written from.

It is asked for them by a copy with more outputs. Protobuf merges messages that stand one behind the other, so the copy
is the file's own bytes and some more, and no weight is read to make it.
"""

import contextlib
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import onnx
from torch import Tensor

from foldserve.models.errors import FormNotWritten
from foldserve.models.export.verify.layers.exactness import onnx_in_float32
from foldserve.models.export.writers.onnx_writer import load_onnx, run_onnx, save_onnx
from foldserve.models.export.writers.reasons import reason


class OnnxValues:
    """The file at path as what it computes; first_wrong_layer.FileValues.

    names: node of the graph → its value's name. outputs: of the file, which it gives anyway.
    """

    def __init__(self, path: Path, names: Mapping[str, str], outputs: Sequence[str]) -> None:
        self._path = path
        self._names = names
        self._outputs = frozenset(outputs)

    @property
    def nodes(self) -> Collection[str]:
        return self._names.keys()

    def fetch(
        self, nodes: Sequence[str], inputs: tuple[Tensor, ...], known: Mapping[str, Tensor]
    ) -> list[Tensor]:
        """Runs the whole file; known is of no use to it."""
        names = [self._names[node] for node in nodes]
        once = list(dict.fromkeys(names))
        with _with_outputs(self._path, [name for name in once if name not in self._outputs]) as aside:
            session = load_onnx(aside, as_written=True)
        try:
            found = dict(zip(once, run_onnx(session, inputs, once), strict=True))
        except Exception as error:  # of ONNX Runtime, which has no type of its own for it
            raise FormNotWritten(
                f"the layers of the ONNX file cannot be looked at: {reason(error)}"
            ) from error
        return [found[name] for name in names]


@contextlib.contextmanager
def in_float32(path: Path) -> Iterator[Path]:
    """Within: a copy of a file in 16 bits that computes in float32."""
    aside = path.with_name(f"float32-of-{path.name}")
    try:
        save_onnx(onnx_in_float32(onnx.load(path)), aside)
        yield aside
    finally:
        for written in (aside, aside.with_name(f"{aside.name}.data")):
            written.unlink(missing_ok=True)


@contextlib.contextmanager
def _with_outputs(path: Path, names: Iterable[str]) -> Iterator[Path]:
    """Within: a copy of the file, beside it for the sake of weights in a second file, with more outputs."""
    more = onnx.ModelProto(graph=onnx.GraphProto(output=[onnx.ValueInfoProto(name=name) for name in names]))
    aside = path.with_name(f"values-of-{path.name}")
    try:
        shutil.copyfile(path, aside)
        with aside.open("ab") as file:
            file.write(more.SerializeToString())
        yield aside
    finally:
        aside.unlink(missing_ok=True)
