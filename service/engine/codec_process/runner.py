"""Parsing and rendering over an arena: what lies in one part of it becomes what will lie in another.

Pure but for the memory: no processes, no messages.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foldserve.service.codecs.compression import inflated
from foldserve.service.codecs.protocol import InferenceProtocol, Served, SharedRegions
from foldserve.service.engine.codec_process.messages import Body, Sized
from foldserve.service.errors import NotReady
from foldserve.service.ipc.model_table import MappedModelTable, ModelKey
from foldserve.service.ipc.slots.tensor_layout import TensorLayout
from foldserve.service.repository.model_version import read_version


class CodecResult:
    """What a piece of work has come to. sized: how large it is; write() puts it where there is room."""

    def __init__(self, sized: Sized, parts: Sequence[tuple[int, np.ndarray]]) -> None:
        self.sized = sized
        self._parts = parts

    def write(self, memory: memoryview, at: int) -> None:
        """Write it into the memory from `at` on."""
        for offset, part in self._parts:
            flat = part.reshape(-1).view(np.uint8)
            np.copyto(np.frombuffer(memory, np.uint8, flat.size, at + offset), flat)


class CodecRunner:
    """Works for the models of one API server, over its arena."""

    def __init__(
        self,
        models: MappedModelTable,
        protocols: Mapping[str, InferenceProtocol],
        memory: memoryview,
        regions: SharedRegions | None = None,
    ) -> None:
        self._models = models
        self._versions: dict[ModelKey, tuple[Served, TensorLayout]] = {}
        self._protocols = protocols
        self.memory = memory
        self._regions = regions

    def _version(self, key: ModelKey) -> tuple[Served, TensorLayout]:
        """A version, and where its tensors lie. Raises: NotReady when it was unloaded."""
        found = self._versions.get(key)
        if found is None:
            version = read_version(self._models, key)
            if version is None:
                raise NotReady(
                    f"model {key.model!r} version {key.version} was unloaded while this request came"
                )
            # What was in the row before is asked for no more.
            self._versions = {one: kept for one, kept in self._versions.items() if one.row != key.row}
            artifact = version.artifact
            served = Served(
                *(key.model, key.version, artifact.signature, artifact.labels, artifact.image),
                regions=self._regions,
            )
            found = self._versions[key] = (served, TensorLayout(artifact.signature))
        return found

    def parse(self, key: ModelKey, protocol: str, at: int, body: Body) -> CodecResult:
        """The inputs in a body, as they will lie in the arena.

        Raises: what inflating, parsing and check_inputs raise; NotReady.
        """
        served, layout = self._version(key)
        signature = layout.signature
        text: bytes | memoryview = self.memory[at : at + body.nbytes]
        if body.encoding:
            text = inflated(memoryview(text), body.encoding, body.limit_bytes)
        parsed = self._protocols[protocol].parse(text, served, body.options)
        inputs = parsed.inputs
        rows = signature.check_inputs(inputs)
        arrays = [inputs[spec.name] for spec in signature.inputs]
        dims = layout.dims_of([array.shape for array in arrays]) if layout.dynamic_dims else ()
        places = layout.input_places(rows, dims)
        parts = [(offset, array) for (offset, _), array in zip(places, arrays, strict=True)]
        nbytes = layout.input_bytes(rows, dims)
        return CodecResult(Sized(nbytes, rows, dims, parsed.outputs, parsed.reply, parsed.schedule), parts)

    def render(
        self, key: ModelKey, protocol: str, rows: int, at: int, nbytes: int, names: Sequence[str], reply: Any
    ) -> CodecResult:
        """The answer with these outputs. Raises: ModelFailed when the protocol cannot carry a value; NotReady."""
        served, layout = self._version(key)
        outputs = layout.read_outputs(self.memory[at : at + nbytes], rows)
        chosen = {name: outputs[name] for name in names}
        answer = self._protocols[protocol].render(served, chosen, reply)
        sized = Sized(len(answer.body), media_type=answer.media_type, headers=answer.headers)
        return CodecResult(sized, [(0, np.frombuffer(answer.body, np.uint8))])
