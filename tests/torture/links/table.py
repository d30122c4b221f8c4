"""The kinds of connections, and how many of a hundred clients have which."""

from collections.abc import Awaitable, Callable
from typing import Final

from tests.torture.links.grpc_links import CallLink, StreamLink
from tests.torture.links.http_link import HttpLink
from tests.torture.links.seam import Link, Ports

Open = Callable[[Ports], Awaitable[Link]]

KINDS: Final[tuple[tuple[Open, float], ...]] = (
    (HttpLink.open, 0.7),
    (CallLink.open, 0.15),
    (StreamLink.open, 0.15),
)


def of_clients(count: int) -> list[Open]:
    """How each of so many clients connects: all kinds, in these shares."""
    openers: list[Open] = []
    for opener, share in KINDS:
        openers += [opener] * max(1, round(share * count))
    return [*openers, *[HttpLink.open] * count][:count] if count >= len(KINDS) else [HttpLink.open] * count
