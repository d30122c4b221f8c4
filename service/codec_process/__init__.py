"""Large bodies and answers are turned into arrays and text in a process of its own, one for each API server.

Reading a megabyte of JSON takes ten milliseconds and more, in which Python lets nothing else of its process run; so
whatever is larger than `LARGE` does not happen on an API server's event loop.

    orders.py    the messages between the two processes
    work.py      the work itself, over the API server's arena
    helper.py    the process: takes an order, works, asks for room, writes into it
    client.py    the API server's side: the orders that wait, the process, what happens when it dies

A body already lies in a place of the arena when it is to be decoded, and a model's outputs when they are to be encoded;
what becomes of them goes into another place there. Between the processes go a few bytes for each:

    API server -> helper    order: decode what lies here, or encode it
    helper -> API server    sized: it takes so many bytes; or refused: why
    API server -> helper    put it there; or drop it, nobody waits or there is no room
    helper -> API server    done
"""

from typing import Final

LARGE_JSON_BYTES: Final = 128 * 1024
"""A longer JSON body, or outputs that hold more and are wanted as JSON. Decoding so much takes about 2 ms of a quiet
core, and 10 of a busy one."""
LARGE_COPY_BYTES: Final = 2 * 2**20
"""A longer body, or longer outputs, whose bytes are copied as they are: about 1 ms a copy."""
PIECE_BYTES: Final = 2**20
"""What is copied in one turn of the event loop, of what is larger."""
