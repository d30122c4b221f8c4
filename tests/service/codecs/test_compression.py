import contextlib
import gzip
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.service.codecs.compression import MOST_INFLATED, encoding_of, inflated
from foldserve.service.errors import BadRequest, TooLarge, UnsupportedMediaType

BODY = b'{"inputs": [[1, 2, 3]]}' * 40


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


WAYS = {
    "gzip": ("gzip", gzip.compress),
    "several gzip files": ("gzip", lambda data: gzip.compress(data[:7]) + gzip.compress(data[7:])),
    "deflate": ("deflate", zlib.compress),
    "deflate without its frame": ("deflate", raw_deflate),
}


@pytest.mark.parametrize("way", WAYS)
@given(data=st.binary(max_size=300))
def test_a_body_comes_out_as_it_was(way, data):
    encoding, compress = WAYS[way]
    assert inflated(memoryview(compress(data)), encoding, 300) == data


@pytest.mark.parametrize("way", WAYS)
def test_what_inflates_beyond_the_bound_is_refused_without_being_inflated_whole(way):
    encoding, compress = WAYS[way]
    assert inflated(memoryview(compress(BODY)), encoding, len(BODY)) == BODY
    with pytest.raises(TooLarge, match=f"more than {len(BODY) - 1} bytes"):
        inflated(memoryview(compress(BODY)), encoding, len(BODY) - 1)


@pytest.mark.parametrize("way", WAYS)
@given(data=st.data())
def test_a_cut_body_is_refused(way, data):
    encoding, compress = WAYS[way]
    packed = compress(BODY)
    at = data.draw(st.integers(0, len(packed) - 1))
    if way == "several gzip files" and at == len(gzip.compress(BODY[:7])):
        return  # whole in itself
    with pytest.raises(BadRequest):
        inflated(memoryview(packed[:at]), encoding, len(BODY))


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@given(data=st.binary(max_size=200))
def test_any_bytes_are_inflated_or_refused(encoding, data):
    with contextlib.suppress(BadRequest, TooLarge):
        assert len(inflated(memoryview(data), encoding, 1000)) <= 1000


def test_what_follows_a_whole_body_is_refused_unless_it_is_another():
    with pytest.raises(BadRequest):
        inflated(memoryview(gzip.compress(BODY) + b"more"), "gzip", len(BODY))


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress, raw_deflate])
def test_no_body_becomes_more_than_its_length_tells(compress):
    for data in (b"", b"a", b"a" * 2**22, b"ab" * 2**21, bytes(2**24)):
        assert len(data) <= MOST_INFLATED * len(compress(data))


def test_a_body_of_many_small_files_takes_a_time_that_grows_as_it_does():
    # Twice the files take twice the time, not four times it: three is between, and the least of several tries leaves
    # out what else the machine does.
    def seconds(files: int) -> float:
        body = memoryview(gzip.compress(b"") * files)
        tries = []
        for _ in range(3):
            began = time.process_time()
            assert inflated(body, "gzip", 0) == b""
            tries.append(time.process_time() - began)
        return min(tries)

    assert seconds(40_000) < 3 * seconds(20_000)


@pytest.mark.parametrize(
    ("header", "encoding"),
    [
        (None, ""),
        ("", ""),
        ("identity", ""),
        ("gzip", "gzip"),
        (" GZIP ", "gzip"),
        ("x-gzip", "gzip"),
        ("deflate", "deflate"),
    ],
)
def test_the_header_names_the_encoding(header, encoding):
    assert encoding_of(header) == encoding


@pytest.mark.parametrize("header", ["br", "zstd", "gzip, gzip", "gzip;q=1"])
def test_what_is_not_read_is_refused_with_what_is(header):
    with pytest.raises(UnsupportedMediaType, match="gzip or deflate"):
        encoding_of(header)
