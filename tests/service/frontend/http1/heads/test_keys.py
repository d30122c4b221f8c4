"""Heads with keys: a cached head is its own key's, and what a hostile client sends is not kept."""

import pytest

from foldserve.service.access.cross_origin import CrossOrigin
from foldserve.service.access.gate import Gate
from foldserve.service.access.key_file import Key, digest_of
from foldserve.service.access.keyring import Caller, Keyring
from foldserve.service.access.scopes import INFER, METRICS
from foldserve.service.frontend.http1.heads.reader import HeadReader
from tests.service.frontend.http1.heads.test_reader import NEEDED, ROUTES

FIRST = b"POST /predict/m0 HTTP/1.1"
A, B = b"key-of-a-0123456789", b"key-of-b-0123456789"


def head(*lines: bytes) -> bytes:
    return b"\r\n".join([FIRST, *NEEDED, *lines, b"", b""])


def caller(name: str, key: bytes, scopes: int = INFER, models: tuple[str, ...] | None = None) -> Caller:
    return Caller(Key(name, digest_of(key), scopes, models), None)


@pytest.fixture
def keys() -> Keyring:
    made = Keyring()
    made.hold([caller("a", A), caller("b", B)])
    return made


@pytest.fixture
def reader(keys: Keyring) -> HeadReader:
    return HeadReader(ROUTES, Gate(keys))


def asked_by(reader: HeadReader, *lines: bytes) -> str | None:
    data = head(*lines)
    found = reader.read(data, len(data))
    return None if found is None else found.key_name


def test_each_cached_head_is_its_own_keys(reader: HeadReader) -> None:
    for _ in range(5):
        assert asked_by(reader, b"Authorization: Bearer " + A) == "a"
        assert asked_by(reader, b"Authorization: Bearer " + B) == "b"
        assert asked_by(reader, b"X-Api-Key: " + B) == "b"
        assert asked_by(reader) is None
        assert asked_by(reader, b"X-Api-Key: " + A[:-1]) is None
    assert {found.key_name for found in reader.heads.kept.values()} == {"a", "b"}


def test_cached_head_is_forgotten_when_the_keys_change(reader: HeadReader, keys: Keyring) -> None:
    line = b"X-Api-Key: " + A
    for _ in range(3):
        assert asked_by(reader, line) == "a"
    keys.hold([caller("b", B)])
    reader.serve(ROUTES)
    assert asked_by(reader, line) is None
    assert not reader.heads.kept
    keys.hold([caller("renamed", A)])
    reader.serve(ROUTES)
    assert asked_by(reader, line) == "renamed"


def test_head_without_the_scope_or_the_model_is_left_to_asgi_which_says_so(
    reader: HeadReader, keys: Keyring
) -> None:
    keys.hold([caller("a", A, METRICS), caller("b", B, INFER, ("other",))])
    assert asked_by(reader, b"X-Api-Key: " + A) is None
    assert asked_by(reader, b"X-Api-Key: " + B) is None
    keys.hold([caller("b", B, INFER, ("m0",))])
    assert asked_by(reader, b"X-Api-Key: " + B) == "b"


@pytest.mark.parametrize(
    "lines",
    [
        (b"X-Api-Key: " + A, b"Authorization: Bearer " + B),
        (b"X-Api-Key: " + A, b"X-Api-Key: " + A),
        (b"Authorization: Bearer " + A, b"Authorization: Bearer " + B),
        (b"Authorization: Basic " + A,),
        (b"Authorization: " + A,),
        (b"X-Api-Key: " + b"k" * 600,),
        (b"X-Api-Key:",),
    ],
)
def test_heads_with_doubtful_keys_are_left_to_asgi(reader: HeadReader, lines: tuple[bytes, ...]) -> None:
    assert asked_by(reader, *lines) is None


def test_keys_that_nobody_has_are_not_kept_however_many_come(reader: HeadReader) -> None:
    for number in range(5000):
        for _ in range(2):
            assert asked_by(reader, b"X-Api-Key: guess-%d" % number) is None
    kept = [*reader.lines.kept, *reader.lines.once]
    assert len(kept) == len(NEEDED)
    assert not any(b"guess" in line for line in kept)
    assert not reader.heads.kept
    assert not reader.heads.once


def test_without_keys_the_headers_mean_nothing() -> None:
    reader = HeadReader(ROUTES)
    for lines in (
        (),
        (b"X-Api-Key: x", b"X-Api-Key: y", b"Authorization: Basic x", b"Origin: null", b"Origin: a"),
    ):
        assert asked_by(reader, *lines) == ""


def test_page_of_another_origin_is_left_to_asgi_where_cors_is_on() -> None:
    reader = HeadReader(ROUTES, Gate(None, CrossOrigin(["https://app.example"])))
    assert asked_by(reader) == ""
    assert asked_by(reader, b"Origin: https://app.example") is None
