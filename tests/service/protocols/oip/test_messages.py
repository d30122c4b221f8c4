"""The messages are those of the protocol: field by field those of NVIDIA's client, and of the .proto beside them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from tritonclient.grpc import service_pb2

from foldserve.service.protocols.oip import messages

FOLDER = Path(messages.__file__).parent
THEIRS = service_pb2.DESCRIPTOR.pool
FILES = {
    file.name: file for file in FileDescriptorSet.FromString((FOLDER / "descriptors.binpb").read_bytes()).file
}
_WORD = re.compile(r'"[^"]*"|[\w.]+|[{}()<>,;=]')


def message_names(file: Any) -> Iterator[tuple[str, Any]]:
    """Every message of a file, with its whole name."""
    waiting = [(f"{file.package}.{one.name}", one) for one in file.message_type]
    while waiting:
        name, one = waiting.pop()
        yield name, one
        waiting += [(f"{name}.{inner.name}", inner) for inner in one.nested_type]


OURS = dict(message_names(FILES["open_inference.proto"]))


@pytest.mark.parametrize("name", OURS)
def test_every_field_has_the_number_name_and_type_of_the_protocol(name: str) -> None:
    theirs = THEIRS.FindMessageTypeByName(name).fields_by_name
    assert OURS[name].field or not theirs  # an empty message is empty there, too
    for field in OURS[name].field:
        other = theirs[field.name]
        kind = other.message_type or other.enum_type
        assert (field.number, field.type, field.label == field.LABEL_REPEATED) == (
            *(other.number, other.type),
            other.is_repeated,
        )
        assert field.type_name == ("" if kind is None else f".{kind.full_name}")
        oneof = other.containing_oneof
        if field.HasField("oneof_index"):
            assert oneof is not None
            assert OURS[name].oneof_decl[field.oneof_index].name == oneof.name


def test_every_value_and_call_is_the_protocols() -> None:
    file = FILES["open_inference.proto"]
    enums = [(f"inference.{one.name}", one) for one in file.enum_type]
    enums += [(f"{name}.{one.name}", one) for name, of in OURS.items() for one in of.enum_type]
    assert len(enums) == 2
    for name, enum in enums:
        theirs = THEIRS.FindEnumTypeByName(name).values_by_name
        assert all(theirs[value.name].number == value.number for value in enum.value)
    calls = THEIRS.FindServiceByName(messages.INFERENCE).methods_by_name
    (service,) = file.service
    for call in service.method:
        other = calls[call.name]
        assert (call.input_type, call.output_type) == (
            f".{other.input_type.full_name}",
            f".{other.output_type.full_name}",
        )


@pytest.mark.parametrize("name", FILES)
def test_descriptors_say_what_the_proto_says(name: str) -> None:
    """Both are in the repository, and one is made of the other."""
    text = re.sub(r"//.*", "", (FOLDER / name).read_text())
    written = re.findall(r"(?:(repeated|map<\w+, \w+>) )?([\w.]+ )?(\w+) = (\d+);", text)
    fields = [field for _, of in message_names(FILES[name]) for field in entries_left_out(of)]
    enums = [*FILES[name].enum_type]
    enums += [one for _, of in message_names(FILES[name]) for one in of.enum_type]
    values = [value for one in enums for value in one.value]
    assert sorted((name, int(number)) for _, _, name, number in written) == sorted(
        (one.name, one.number) for one in [*fields, *values]
    )
    for how, kind, field_name, number in written:
        if not kind:
            continue
        word = kind.strip()
        assert any(
            (field.name, field.number) == (field_name, int(number))
            and (field.label == field.LABEL_REPEATED) == bool(how)
            and (
                field.type_name.endswith(f".{word}") or field.Type.Name(field.type) == f"TYPE_{word.upper()}"
            )
            for field in fields
        )


def entries_left_out(message: Any) -> list[Any]:
    """The fields of a message as the .proto has them; it does not spell out the entries of maps."""
    return [] if message.options.map_entry else list(message.field)


def test_messages_live_beside_the_clients_own_in_one_process() -> None:
    ours = messages.ModelInferRequest(model_name="a", raw_input_contents=[b"1"])
    theirs = service_pb2.ModelInferRequest.FromString(ours.SerializeToString())
    assert type(ours) is not type(theirs)
    assert (theirs.model_name, list(theirs.raw_input_contents)) == ("a", [b"1"])
