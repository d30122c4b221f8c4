"""Whether a model's tensors can travel to a worker at all: through a ticket, and through an API server's memory."""

from dataclasses import replace
from math import prod

from foldserve.service.ipc.slots.slot_pool import allocation_bytes
from foldserve.service.ipc.slots.tensor_layout import TensorLayout
from foldserve.service.repository.artifact import Artifact
from foldserve.service.repository.index import Broken, ModelEntry, Repository


def without_what_cannot_travel(found: Repository, arena_bytes: int) -> Repository:
    """The repository, with those versions among the broken whose tensors cannot travel to a worker."""
    entries: list[ModelEntry] = []
    broken = list(found.broken)
    for entry in found.entries:
        good: list[Artifact] = []
        bad: list[Broken] = []
        for artifact in entry.artifacts:
            try:
                layout = TensorLayout(artifact.signature)
                _check_room(layout, arena_bytes)
            except ValueError as error:
                problem = f"{entry.name}/{artifact.version} cannot be served: {error}"
                bad.append(Broken(entry.name, artifact.version, (problem,)))
            else:
                good.append(artifact)
        if good:
            entries.append(replace(entry, artifacts=tuple(good)))
            broken += bad
        else:
            broken.append(Broken(entry.name, "", tuple(one.problems[0] for one in bad)))
    return Repository(tuple(entries), tuple(broken))


def _check_room(layout: TensorLayout, arena_bytes: int) -> None:
    """Raise ValueError unless an API server's memory has room for a row and its answer, with dims of any size as 1."""
    inputs = layout.input_bytes(1, (1,) * layout.dynamic_dims)
    outputs = layout.output_capacity(1)
    if outputs is None:
        outputs = sum(
            spec.dtype.itemsize * prod(max(1, dim) for dim in spec.row_shape)
            for spec in layout.signature.outputs
        )
    if allocation_bytes(inputs, outputs) > arena_bytes:
        raise ValueError(
            f"one row of its inputs takes {inputs} bytes and its answer {outputs}, and an API server has "
            f"{arena_bytes}; expected room for a row (a request, where the model counts no rows): set a larger "
            "--arena-bytes, or fix the signature"
        )
