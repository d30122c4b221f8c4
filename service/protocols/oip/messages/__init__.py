"""The protobuf messages of the Open Inference Protocol over gRPC, and of gRPC's own services: health and reflection.

    *.proto             what they are, for people
    descriptors.binpb   the same, for protobuf

After a change of the first, in this folder, with the compiler that comes with the package grpcio-tools:

    python -m grpc_tools.protoc -I. --descriptor_set_out=descriptors.binpb *.proto

No Python is generated: generated modules would register `inference.*` for the whole process, where a client of the same
protocol (tritonclient) may have registered its own, and they are bound to the compiler's version of protobuf.

Imports protobuf, which is there with the extra `grpc`; so nothing imports this before it has to.
"""

from importlib import resources
from typing import Any, Final

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorSet

INFERENCE: Final = "inference.GRPCInferenceService"
HEALTH: Final = "grpc.health.v1.Health"
REFLECTIONS: Final = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
SERVICES: Final = (INFERENCE, HEALTH, *REFLECTIONS)

_POOL: Final = descriptor_pool.DescriptorPool()
_FILES: Final[dict[str, bytes]] = {}
"""Descriptors, by the files' names."""
for _file in FileDescriptorSet.FromString(
    resources.files(__name__).joinpath("descriptors.binpb").read_bytes()
).file:
    _POOL.Add(_file)
    _FILES[_file.name] = _file.SerializeToString()


def message(name: str) -> Any:
    """The class of a message, by its whole name."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(name))


def methods(service: str) -> dict[str, tuple[Any, Any]]:
    """The classes of request and response of each call of a service, by its whole name."""
    return {
        method.name: (message(method.input_type.full_name), message(method.output_type.full_name))
        for method in _POOL.FindServiceByName(service).methods
    }


def file_named(name: str) -> bytes | None:
    """The descriptor of a file, as FileDescriptorProto; it imports no other."""
    return _FILES.get(name)


def file_of(symbol: str) -> bytes | None:
    """The descriptor of the file that has this service, call, message or field."""
    service, _, call = symbol.rpartition(".")
    if service in SERVICES and call in methods(service):
        symbol = service  # protobuf's pool knows no calls as symbols
    try:
        return _FILES[_POOL.FindFileContainingSymbol(symbol).name]
    except KeyError:
        return None


def is_message(name: str) -> bool:
    """Whether there is a message of this whole name."""
    try:
        _POOL.FindMessageTypeByName(name)
    except KeyError:
        return False
    return True


ModelInferRequest: Final = message("inference.ModelInferRequest")
ModelInferResponse: Final = message("inference.ModelInferResponse")
