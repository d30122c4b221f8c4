"""What the client makes of answers, without a server."""

import pytest

from foldserve.service.client.calls import ClientError, read_prediction, refusal


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04" + b"0" * 30,
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\x10\x00{" + b"(" * 15,
        b"\x93NUMPY\x01\x00\x45\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000,), }\n",
    ],
    ids=["empty", "archive", "cut", "unclosed", "enormous"],
)
def test_answer_that_says_it_is_npy_and_is_none_is_not_foldserves(content):
    with pytest.raises(ClientError, match="is not foldserve's"):
        read_prediction(200, {"content-type": "application/x-npy"}, content)


def test_server_that_says_at_once_is_not_asked_again_without_a_pause():
    assert refusal(503, {"retry-after": "0"}, b"").retry_after_s == 0.05
