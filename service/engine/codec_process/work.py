"""Decoding and encoding over an arena: what lies in one place of it becomes what will lie in another.

Pure but for the memory: no processes, no messages.
"""

from collections.abc import Sequence

import numpy as np

from service.codecs import BodyType, TensorHeaders, decode, json_codec
from service.engine.codec_process.orders import Sized
from service.errors import NotReady
from service.ipc.model_table import MappedModelTable, ModelKey
from service.ipc.slots.tensor_layout import Layout
from service.repository.model_version import read_version


class Made:
    """What a piece of work has come to. sized: how large it is; write() puts it where there is room."""

    def __init__(self, sized: Sized, parts: Sequence[tuple[int, np.ndarray]]) -> None:
        self.sized = sized
        self._parts = parts

    def write(self, memory: memoryview, at: int) -> None:
        """Write it into the memory from `at` on."""
        for offset, part in self._parts:
            flat = part.reshape(-1).view(np.uint8)
            np.copyto(np.frombuffer(memory, np.uint8, flat.size, at + offset), flat)


class Bench:
    """Works for the models of one API server, over its arena."""

    def __init__(self, models: MappedModelTable, memory: memoryview) -> None:
        self._models = models
        self._layouts: dict[ModelKey, Layout] = {}
        self.memory = memory

    def _layout(self, key: ModelKey) -> Layout:
        """Where a version's tensors lie. Raises: NotReady when it was unloaded."""
        layout = self._layouts.get(key)
        if layout is None:
            version = read_version(self._models, key)
            if version is None:
                raise NotReady(
                    f"model {key.model!r} version {key.version} was unloaded while this request came"
                )
            # What was in the row before is asked for no more.
            self._layouts = {one: kept for one, kept in self._layouts.items() if one.row != key.row}
            layout = self._layouts[key] = Layout(version.artifact.signature)
        return layout

    def decode(
        self, key: ModelKey, kind: BodyType, at: int, nbytes: int, headers: TensorHeaders | None
    ) -> Made:
        """The inputs in a body, as they lie in a place. Raises: what codecs.decode and check_inputs raise; NotReady."""
        layout = self._layout(key)
        signature = layout.signature
        inputs = decode(kind, self.memory[at : at + nbytes], signature, headers)
        rows = signature.check_inputs(inputs)
        arrays = [inputs[spec.name] for spec in signature.inputs]
        dims = layout.dims_of([array.shape for array in arrays]) if layout.dynamic_dims else ()
        places = layout.input_places(rows, dims)
        parts = [(offset, array) for (offset, _), array in zip(places, arrays, strict=True)]
        return Made(Sized(layout.input_bytes(rows, dims), rows, dims), parts)

    def encode(self, key: ModelKey, rows: int, at: int, nbytes: int, names: Sequence[str]) -> Made:
        """The JSON answer with these outputs. Raises: ModelFailed when JSON cannot carry a value; NotReady."""
        outputs = self._layout(key).read_outputs(self.memory[at : at + nbytes], rows)
        text = json_codec.encode(key.model, key.version, {name: outputs[name] for name in names})
        return Made(Sized(len(text)), [(0, np.frombuffer(text, np.uint8))])
