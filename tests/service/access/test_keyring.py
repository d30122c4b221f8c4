"""From what a client presents to the caller that it is."""

import hmac
from typing import Any

import pytest

from foldserve.service.access.key_file import Key, digest_of
from foldserve.service.access.keyring import Caller, Keyring, bearer_key, presented_digest
from foldserve.service.access.scopes import CONTROL, INFER, METRICS
from foldserve.service.errors import Forbidden, Unauthorized

KEY = "0123456789abcdef"


@pytest.fixture
def keys() -> Keyring:
    made = Keyring()
    made.hold([Caller(Key("web", digest_of(KEY.encode()), INFER, ("m",)), None)])
    return made


@pytest.mark.parametrize(
    ("authorization", "api_key"),
    [
        (f"Bearer {KEY}", None),
        (f"bearer  {KEY} ", None),
        (None, KEY),
        ("Basic d2ViOng=", KEY),
        (f"Bearer {KEY}", KEY),
    ],
)
def test_key_is_found_in_either_header(keys: Keyring, authorization: str | None, api_key: str | None) -> None:
    assert keys.caller(authorization, api_key).name == "web"


@pytest.mark.parametrize(
    ("authorization", "api_key", "text"),
    [
        (None, None, "has no key"),
        ("Basic d2ViOng=", None, "behind the word Bearer"),
        (KEY, None, "has no key"),
        ("Bearer", None, "has no key"),
        ("Bearer ", None, "not one of"),
        ("", "", "not one of"),
        (None, KEY + "0", "not one of"),
        (None, KEY[:-1], "not one of"),
        (None, digest_of(KEY.encode()).decode("latin-1"), "not one of"),
        (None, "x" * 100_000, "not one of"),
        (f"Bearer {KEY}", KEY + "0", "two different keys"),
        (f"Bearer {KEY},Bearer other", None, "not one of"),
    ],
)
def test_anything_else_is_refused_without_being_shown(
    keys: Keyring, authorization: str | None, api_key: str | None, text: str
) -> None:
    with pytest.raises(Unauthorized) as caught:
        keys.caller(authorization, api_key)
    assert text in str(caught.value)
    assert KEY not in str(caught.value)


def test_only_digests_are_kept_and_compared(keys: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a client presents is hashed before it meets anything of a key: no comparison sees the key itself."""
    compared: list[tuple[Any, Any]] = []
    in_constant_time = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return in_constant_time(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    keys.caller(None, KEY)
    with pytest.raises(Unauthorized):
        keys.caller(None, KEY[:-1] + "0")
    assert compared == [(digest_of(KEY.encode()), digest_of(KEY.encode()))]
    (caller,) = keys._callers.values()
    held = [keys._callers, caller.__dict__]
    assert KEY not in repr(held)
    assert {len(digest) for digest in keys._callers} == {32}


def test_headers_become_digests_before_anything_is_cached_of_them() -> None:
    assert presented_digest(f"Bearer {KEY}".encode(), True) == presented_digest(KEY.encode(), False)
    assert presented_digest(b"Basic x", True) is None
    assert presented_digest(b"x" * 1000, False) == b""
    assert bearer_key(b"BEARER abc") == b"abc"


def test_scope_and_model_that_a_key_lacks_are_named(keys: Keyring) -> None:
    caller = keys.caller(None, KEY)
    caller.check(INFER)
    caller.check(INFER, "m")
    with pytest.raises(Forbidden, match="scope metrics; that of 'web' has infer"):
        caller.check(METRICS)
    with pytest.raises(Forbidden, match="control"):
        caller.check(CONTROL)
    with pytest.raises(Forbidden, match="not for model 'n'"):
        caller.check(INFER, "n")
