"""What the supervisor and its children say to each other through their pipes: a kind of message and a number."""

import struct
from enum import IntEnum
from typing import Final

CONTROL_STRUCT: Final = struct.Struct("<II")
"""A ControlMessage and a number."""


class ControlMessage(IntEnum):
    """Kinds of messages."""

    WORKER_DIED = 1
    """To API servers: the worker of this incarnation is dead."""
    ARE_YOU_ALIVE = 2
    """To every child: answer on the scoreboard."""
    RUN_TIMEOUT = 3
    """From an API server: the worker at this index has been busy with one step for longer than the limit."""
    WORKER_READY = 4
    """From the worker at this index: it has loaded what it could."""
    STOP = 5
    """To API servers: accept nothing new, finish what there is, end."""
    QUEUE_STALLED = 6
    """From an API server: nobody takes the tickets of the model in this row of the model table."""
    KEYS_CHANGED = 8
    """To API servers: others may ask from now on; who, is in access/key_table.py."""
    CERTIFICATE_CHANGED = 9
    """To API servers: the files of the certificate hold another one."""
    MODEL_CHANGED = 7
    """To every child: this row of the model table is another, or in another state. From a child: its part in this row,
    as the scoreboard has it, is another."""
