"""What stands before the value of a field in a protobuf message (protobuf.dev, "Encoding"). Needs no protobuf."""

from typing import Final

BYTES: Final = 2
"""The kind of fields whose length stands before them: texts, bytes, messages."""


def varint(number: int) -> bytes:
    """A whole number, as protobuf writes it."""
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    return bytes(made)


def field_of_bytes(number: int, nbytes: int) -> bytes:
    """What stands before so many bytes that are the value of a field."""
    return varint(number << 3 | BYTES) + varint(nbytes)
