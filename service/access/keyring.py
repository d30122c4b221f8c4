"""The keys in force in one API server: from what a client presents to the caller that it is. Owned by its event loop.

A presented key is hashed before anything else, and looked up by its digest; no two keys are ever compared. How long
that takes may tell how much of a digest is like that of a key, but nobody can choose the digest of what he
presents, and so nothing can be guessed from it piece by piece. The last comparison takes the same time for all.
"""

import hmac
from collections.abc import Iterable
from typing import Final

from foldserve.service.access.key_file import Key, digest_of
from foldserve.service.access.quotas import Quota
from foldserve.service.access.scopes import words
from foldserve.service.errors import Forbidden, Unauthorized

KEY_BYTES: Final = 512
"""Of a key that is presented; none is longer."""
_BEARER: Final = b"bearer "


class Caller:
    """Who presents a key. quota: None where the key has no limits."""

    def __init__(self, key: Key, quota: Quota | None) -> None:
        self.name = key.name
        self.digest = key.digest
        self.scopes = key.scopes
        self.models = None if key.models is None else frozenset(key.models)
        self.quota = quota

    def may(self, scope: int, model: str) -> bool:
        """Whether it may make calls of this scope for a model; "" for none in particular."""
        return bool(self.scopes & scope) and (self.models is None or not model or model in self.models)

    def check(self, scope: int, model: str = "") -> None:
        """Raise Forbidden unless it may."""
        if not self.scopes & scope:
            raise Forbidden(
                f"this call needs a key with the scope {words(scope)}; that of {self.name!r} has {words(self.scopes)}: "
                "use another key, or have the scope added to this one"
            )
        if not self.may(scope, model):
            raise Forbidden(
                f"the key of {self.name!r} is not for model {model[:100]!r}; use another key, or have the model added "
                "to this one's"
            )


class Keyring:
    """All callers."""

    def __init__(self) -> None:
        self._callers: dict[bytes, Caller] = {}

    def hold(self, callers: Iterable[Caller]) -> None:
        """Have these, and no others."""
        self._callers = {caller.digest: caller for caller in callers}

    def find(self, digest: bytes) -> Caller | None:
        """Whose key has this digest."""
        caller = self._callers.get(digest)
        return caller if caller is not None and hmac.compare_digest(caller.digest, digest) else None

    def caller(self, authorization: str | None, api_key: str | None) -> Caller:
        """Who presents the key of these two headers. Raises: Unauthorized."""
        presented = {api_key.encode("latin-1")} if api_key is not None else set()
        bearer = bearer_key((authorization or "").encode("latin-1"))
        if bearer is not None:
            presented.add(bearer)
        if not presented and authorization is not None:
            raise Unauthorized(
                "the Authorization header has no key that this server looks at; send it behind the word Bearer, as "
                "'Authorization: Bearer KEY', or as 'X-Api-Key: KEY'"
            )
        if not presented:
            raise Unauthorized(
                "the request has no key; send one as 'Authorization: Bearer KEY' or 'X-Api-Key: KEY', with a key that "
                "the operator of this server gives you"
            )
        if len(presented) > 1:
            raise Unauthorized("the request has two different keys; send one of them")
        (key,) = presented
        found = self.find(digest_of(key)) if len(key) <= KEY_BYTES else None
        if found is None:
            raise Unauthorized("the key is not one of this server's; send another, or have it added to them")
        return found


def bearer_key(authorization: bytes) -> bytes | None:
    """The key of an Authorization header (RFC 6750, 2.1); None where it is of another scheme."""
    if authorization[:7].lower() != _BEARER:
        return None
    return authorization[7:].strip(b" ")


def presented_digest(value: bytes, is_authorization: bool) -> bytes | None:
    """The digest of the key in a header's value; b"" for what can be no key, None for a header that brings none."""
    key = bearer_key(value) if is_authorization else value
    if key is None:
        return None
    return digest_of(key) if len(key) <= KEY_BYTES else b""
