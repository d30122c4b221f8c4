"""The messages between an API server and its codec process."""

import pytest

from foldserve.service.engine.codec_process import messages
from foldserve.service.engine.codec_process.messages import MessageType
from foldserve.service.errors import BadJson


@pytest.mark.parametrize("character", ["a", "\x00", '"', "\U0001f600"])
def test_what_a_client_is_told_fits_into_a_packet_however_long_its_text_is(character):
    packet = messages.refusal(BadJson(character * 1_000_000))
    assert len(packet) <= messages.PACKET_BYTES
    kind, values = messages.unpack(packet)
    assert kind == MessageType.REFUSED
    error = messages.refused(*values)
    assert isinstance(error, BadJson)
    assert str(error).startswith(character * 1000)
