"""The messages between an API server and its codec process."""

import pytest

from foldserve.service.engine.codec_process import orders
from foldserve.service.engine.codec_process.orders import Word
from foldserve.service.errors import BadJson


@pytest.mark.parametrize("character", ["a", "\x00", '"', "\U0001f600"])
def test_what_a_client_is_told_fits_into_a_packet_however_long_its_text_is(character):
    packet = orders.refusal(BadJson(character * 1_000_000))
    assert len(packet) <= orders.PACKET_BYTES
    word, values = orders.unpack(packet)
    assert word == Word.REFUSED
    error = orders.refused(*values)
    assert isinstance(error, BadJson)
    assert str(error).startswith(character * 1000)
