"""What is asked of a request before it is served, as the frontend sees it: a key, and which pages may read answers."""

from foldserve.service.access.cross_origin import CrossOrigin
from foldserve.service.access.keyring import Caller, Keyring
from foldserve.service.access.scopes import OPEN


class Gate:
    """keys: None where none are asked for. cross_origin: None where CORS is off."""

    def __init__(self, keys: Keyring | None = None, cross_origin: CrossOrigin | None = None) -> None:
        self.keys = keys
        self.cross_origin = cross_origin

    def caller(self, scope: int, authorization: str | None, api_key: str | None) -> Caller | None:
        """Whose key these two headers bring, for a call of this scope, which is still to be checked; None where nobody
        is asked. Raises: Unauthorized."""
        if self.keys is None or scope == OPEN:
            return None
        return self.keys.caller(authorization, api_key)


WIDE_OPEN = Gate()
"""Nothing is asked."""
