"""The JSON part of an inference request: inputs, outputs, id and parameters, each with its bounds.

What it means is settled here once and for all, before anything runs: a request that asks for what the model does not
have is refused with the place in the document. What is optional may also be null: clients whose requests are objects
of pydantic's, as KServe's and MLServer's are, write so what was not set.
"""

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from foldserve.service.artifact.signature import ANY, Signature, TensorSpec, check_shape
from foldserve.service.codecs.fast.codec import Schedule
from foldserve.service.codecs.json_diagnostics import kind_of
from foldserve.service.codecs.protocol import ParsedRequest, Served
from foldserve.service.errors import BadJson, BadRequest, BadTensor
from foldserve.service.protocols.oip.shared_memory import Place, place_of, read_input
from foldserve.service.protocols.oip.tensors import BINARY_ONLY, from_binary, from_json

_ID_CHARS: Final = 1024
_LARGEST_INT: Final = 2**63 - 1
_MOST_TENSORS: Final = 1024
_MOST_PLACES: Final = 64
"""Outputs in shared memory: the messages of the codec process have room for their names."""


class Reply(NamedTuple):
    """What the answer to a request needs to know of it; JSON values.

    id: to be echoed; None for none. binary: whether outputs go out as bytes. choices: by the names of outputs that ask
    for something of their own: whether as bytes, and how many of the largest values as classes, 0 for the numbers.
    """

    id: str | None = None
    binary: bool = False
    choices: Mapping[str, tuple[bool, int]] = {}
    places: Mapping[str, Place] = {}

    def of(self, output: str) -> tuple[bool, int]:
        """Whether this output goes out as bytes, and as how many classes."""
        binary, classes = self.choices.get(output, (self.binary, 0))
        return binary, classes


class Carrier(Protocol):
    """Where the elements of a request's tensors are, unless they are in shared memory."""

    def holds(self, tensor: Mapping[str, Any]) -> str:
        """What a request holds of an input; "" for nothing."""
        ...

    def read(self, tensor: Mapping[str, Any], spec: TensorSpec, shape: tuple[int, ...]) -> np.ndarray:
        """Those of the next input. tensor: what the request says of it. Raises: ServiceError."""
        ...

    def end(self) -> None:
        """Every input was read. Raises: BadTensor when something is left over."""
        ...


def parse_document(document: Any, carrier: Carrier, served: Served) -> ParsedRequest:
    """What a request says. Raises: BadJson, BadRequest, BadTensor, TakesLong, TooLarge."""
    signature = served.signature
    if not isinstance(document, dict):
        raise BadJson(f'the request is {kind_of(document)}; expected an object with "inputs"')
    parameters = _parameters(document, "the request")
    binary_output = _flag(parameters, "binary_data_output", "the request")
    outputs, choices, places = _outputs(document, served, binary_output)
    reply = Reply(_id(document), binary_output, choices, places)
    for name in outputs or signature.outputs_by_name:
        as_bytes, classes = reply.of(name)
        datatype = signature.outputs_by_name[name].datatype
        if datatype in BINARY_ONLY and not as_bytes and not classes and name not in places:
            raise BadRequest(
                f"output {name!r} is {datatype}, which JSON cannot carry in this protocol; ask for it as binary data, "
                'with "binary_data": true in its parameters'
            )
    timeout_us = _count(parameters, "timeout", "the request", "microseconds")
    priority = _count(parameters, "priority", "the request", "a priority level")
    inputs, shared = _inputs(document, carrier, served)
    schedule = Schedule(timeout_us, priority)
    return ParsedRequest(inputs, outputs, tuple(reply), schedule, not shared and not places)


def parse_raw(body: memoryview, signature: Signature) -> ParsedRequest:
    """A body that is one tensor's bytes and nothing else ("raw binary request" of the binary tensor extension).

    As many rows as the size tells where the rows alone may differ, else one row of that size. Raises: BadTensor.
    """
    if len(signature.inputs) > 1:
        raise BadTensor(
            f"the model has {len(signature.inputs)} inputs and a raw body (Inference-Header-Content-Length: 0) holds "
            "one; send JSON that names them before the bytes"
        )
    spec = signature.inputs[0]
    array = from_binary(body, spec, _raw_shape(body.nbytes, spec))
    return ParsedRequest({spec.name: array}, reply=tuple(Reply(binary=True)))


def _raw_shape(nbytes: int, spec: TensorSpec) -> tuple[int, ...]:
    free = [axis for axis, size in enumerate(spec.shape) if size == ANY]
    if spec.counts_rows and len(free) > 1:
        free = free[1:]  # one row
    if len(free) > 1:
        raise BadTensor(
            f"input {spec.name!r} has shape {list(spec.shape)} (-1 is any size), which the size of a raw body alone "
            "does not settle; send JSON with its shape before the bytes"
        )
    shape = [1 if size == ANY else size for size in spec.shape]
    unit = math.prod(shape) * spec.dtype.itemsize
    if free:
        shape[free[0]], rest = divmod(nbytes, unit)
        if rest or not nbytes:
            raise BadTensor(
                f"the body has {nbytes} bytes; expected a multiple of {unit}, which {spec} takes at least"
            )
    check_shape(spec, tuple(shape))
    return tuple(shape)


def _inputs(
    document: Mapping[str, Any], carrier: Carrier, served: Served
) -> tuple[dict[str, np.ndarray], bool]:
    """The inputs, and whether one of them was in shared memory."""
    signature, shared = served.signature, False
    given = _tensors(document, "inputs")
    if given is None:
        raise BadJson('"inputs" is missing; expected a list of tensors, one for each input of the model')
    signature.check_names(dict.fromkeys(given))
    arrays: dict[str, np.ndarray] = {}
    for name, tensor in given.items():
        spec = signature.inputs_by_name[name]
        where = f"input {name!r}"
        place = place_of(_parameters(tensor, where), where, served.regions)
        if place is None:
            arrays[name] = carrier.read(tensor, spec, _shape(tensor, spec))
            continue
        shared = True
        if held := carrier.holds(tensor):
            raise BadRequest(f"{where} lies in shared memory and has {held}; send it in one of the two ways")
        arrays[name] = read_input(place, spec, _shape(tensor, spec), served.regions)
    carrier.end()
    return arrays, shared


class JsonAndBytes:
    """Implements Carrier: in "data", or in the bytes that follow the JSON."""

    def __init__(self, binary: memoryview) -> None:
        self._binary = binary
        self._at = 0

    def holds(self, tensor: Mapping[str, Any]) -> str:
        """See Carrier."""
        parameters = tensor.get("parameters") or {}
        found = (tensor.get("data"), parameters.get("binary_data_size"))
        return next(
            (
                f'"{name}"'
                for name, one in zip(("data", "binary_data_size"), found, strict=True)
                if one is not None
            ),
            "",
        )

    def read(self, tensor: Mapping[str, Any], spec: TensorSpec, shape: tuple[int, ...]) -> np.ndarray:
        """See Carrier."""
        size, value = _carrier(tensor, spec.name)
        if size is None:
            return from_json(value, spec, shape)
        at = self._at
        if at + size > len(self._binary):
            raise BadTensor(
                f'input {spec.name!r} has "binary_data_size" {size} and {len(self._binary) - at} bytes of the body are '
                "left for it; send all of its bytes after the JSON, in the order of the inputs"
            )
        self._at += size
        return from_binary(self._binary[at : at + size], spec, shape)

    def end(self) -> None:
        """See Carrier."""
        if self._at < len(self._binary):
            raise BadTensor(
                f"{len(self._binary) - self._at} bytes of the body are left over after the inputs; expected {self._at} "
                "bytes after the JSON (Inference-Header-Content-Length says where it ends)"
            )


def _carrier(tensor: Mapping[str, Any], name: str) -> tuple[int | None, Any]:
    """The number of bytes that an input has behind the JSON, or None and its values."""
    where = f"input {name!r}"
    parameters = _parameters(tensor, where)
    has_data, has_bytes = tensor.get("data") is not None, "binary_data_size" in parameters
    if has_data == has_bytes:
        has = '"data" and "binary_data_size"' if has_data else "neither"
        raise BadRequest(f'{where} has {has}; expected either "data" or the parameter "binary_data_size"')
    if has_data:
        return None, tensor["data"]
    return _count(parameters, "binary_data_size", where, "a number of bytes"), None


def _shape(tensor: Mapping[str, Any], spec: TensorSpec) -> tuple[int, ...]:
    """The shape that an input says it has, which the model takes. Raises: BadTensor."""
    datatype = tensor.get("datatype")
    if datatype != spec.datatype:
        shown = f"datatype {datatype[:50]!r}" if isinstance(datatype, str) else "no datatype"
        raise BadTensor(
            f"input {spec.name!r} has {shown}; expected {spec.datatype!r}: convert the tensor before sending"
        )
    sizes = tensor.get("shape")
    if not isinstance(sizes, list) or any(
        type(size) is not int or not 0 <= size <= _LARGEST_INT for size in sizes
    ):
        raise BadTensor(
            f'input {spec.name!r} has no list of sizes as "shape"; expected {list(spec.shape)}, -1 being any size'
        )
    shape = tuple(sizes)
    check_shape(spec, shape)
    return shape


def _outputs(
    document: Mapping[str, Any], served: Served, binary: bool
) -> tuple[tuple[str, ...], dict[str, tuple[bool, int]], dict[str, Place]]:
    """The outputs that a request asks for, none for all, what it asks of each, and those that go into shared memory."""
    given, signature = _tensors(document, "outputs"), served.signature
    choices: dict[str, tuple[bool, int]] = {}
    places: dict[str, Place] = {}
    for name, output in (given or {}).items():
        where = f"output {name[:100]!r}"
        spec = signature.outputs_by_name.get(name)
        if spec is None:
            names = ", ".join(signature.outputs_by_name)
            raise BadRequest(
                f"{where} is asked for; the model has {names}: name one of them, or none for all"
            )
        parameters = _parameters(output, where)
        place = place_of(parameters, where, served.regions)
        classes = _count(parameters, "classification", where, "a number of classes")
        if classes and (not spec.counts_rows or spec.datatype == "BOOL"):
            raise BadRequest(
                f"{where} cannot be classified: {spec} does not hold scores of rows; ask for its numbers"
            )
        if place is not None:
            if classes:
                raise BadRequest(
                    f"{where} is to be classified, and shared memory takes numbers; ask for one of the two"
                )
            places[name] = place
            if len(places) > _MOST_PLACES:
                raise BadRequest(
                    f"more than {_MOST_PLACES} outputs are to lie in shared memory; ask for fewer"
                )
        choices[name] = (_flag(parameters, "binary_data", where, binary), classes)
    return tuple(choices), choices, places


def _tensors(document: Mapping[str, Any], key: str) -> dict[str, Mapping[str, Any]] | None:
    """The list of tensors under a key, by their names. Raises: BadJson, BadRequest."""
    tensors = document.get(key)
    if tensors is None:
        return None
    if not isinstance(tensors, list):
        raise BadJson(f'"{key}" is {kind_of(tensors)}; expected a list of objects with a "name"')
    if len(tensors) > _MOST_TENSORS:
        raise BadRequest(f'"{key}" has {len(tensors)} entries; expected at most {_MOST_TENSORS}')
    named: dict[str, Mapping[str, Any]] = {}
    for at, tensor in enumerate(tensors):
        name = tensor.get("name") if isinstance(tensor, dict) else None
        if not isinstance(name, str):
            raise BadJson(f'"{key}"[{at}] is not an object with a "name"; name each tensor')
        if name in named:
            raise BadRequest(f'"{key}" has two entries named {name[:100]!r}; expected one of each')
        named[name] = tensor
    return named


def _parameters(document: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Those that are set. Raises: BadJson, BadRequest."""
    parameters = document.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise BadJson(f'{where} has {kind_of(parameters)} as "parameters"; expected an object')
    parameters = {name: value for name, value in parameters.items() if value is not None}
    for name, value in parameters.items():
        if not isinstance(value, str | int | float):  # booleans are ints
            raise BadRequest(
                f"parameter {name[:50]!r} of {where} is {kind_of(value)}; expected a text, a number, true or false"
            )
    return parameters


def _flag(parameters: Mapping[str, Any], name: str, where: str, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise BadRequest(f"parameter {name!r} of {where} is {kind_of(value)}; expected true or false")
    return value


def _count(parameters: Mapping[str, Any], name: str, where: str, what: str) -> int:
    value = parameters.get(name, 0)
    if type(value) is not int or not 0 <= value <= _LARGEST_INT:
        raise BadRequest(f"parameter {name!r} of {where} is {str(value)[:50]!r}; expected {what}, 0 or more")
    return value


def _id(document: Mapping[str, Any]) -> str | None:
    given = document.get("id")
    if given is None:
        return None
    if not isinstance(given, str) or len(given) > _ID_CHARS:
        raise BadRequest(f'"id" is not a text of at most {_ID_CHARS} characters; send such a text, or none')
    return given or None
