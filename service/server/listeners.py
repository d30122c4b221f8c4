"""How listening sockets end, so that no connection is taken that nobody will answer.

A connection that the kernel has taken and no process has accepted is reset when the last descriptor of its socket is
closed. So first the kernel is made to drop what is new, then what it has queued is accepted, then the socket is
closed. A client that connects in between is sent nothing: its system tries again, and is refused.
"""

import ctypes
import socket
import struct
import sys
from collections.abc import Iterable
from typing import Final

_SO_ATTACH_FILTER: Final = 26  # asm-generic/socket.h
_DROP: Final = struct.pack("HBBI", 0x06, 0, 0, 0)  # linux/filter.h: BPF_RET | BPF_K, of no bytes


def stop_accepting(listeners: Iterable[socket.socket]) -> None:
    """Have the kernel drop what comes for these sockets, in whatever process they are used (TCP, Linux; else nothing).

    Connections that were taken before are not touched. Where the system lets this user set no filter, or somebody has
    locked the socket's, all but one that come before the others are accepted are dropped.
    """
    program = ctypes.create_string_buffer(_DROP, len(_DROP))
    of_filter = struct.pack("HP", 1, ctypes.addressof(program))  # struct sock_fprog
    for listener in listeners:
        if sys.platform == "linux" and listener.family in (socket.AF_INET, socket.AF_INET6):
            try:
                listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, of_filter)
            except OSError:  # the end must go on, with whatever the system allows
                listener.listen(0)


def close_listeners(listeners: Iterable[socket.socket]) -> None:
    """In the parent: leave the sockets to the processes that accept what they still hold."""
    kept = list(listeners)
    stop_accepting(kept)
    for listener in kept:
        listener.close()
