"""Whether a connection was reset by its other side, asked of the kernel. Linux only; elsewhere nobody knows."""

import asyncio
import socket
from typing import Final

_TCP_CLOSE: Final = 7  # include/net/tcp_states.h


def was_reset(transport: asyncio.Transport) -> bool:
    """Whether the connection is no more: of which nothing is told while nothing is read or written."""
    own = transport.get_extra_info("socket")
    if own is None or not hasattr(socket, "TCP_INFO") or own.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    try:
        state: int = own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    except OSError:
        return False
    return state == _TCP_CLOSE
