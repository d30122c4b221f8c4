"""Large bodies and answers are turned into arrays and text in a process of its own, one for each API server.

Reading a megabyte of JSON takes ten milliseconds and more, in which Python lets nothing else of its process run; so
what is larger than the bounds below does not happen on an API server's event loop. Nor does the decoding of a picture,
however few bytes it has; nor the writing of an answer that takes longer than rendering_time.py allows.

    messages.py  the messages between the two processes
    runner.py    the work itself, over the API server's arena
    helper.py    the process: takes an order, works, asks for memory, writes into it
    client.py    the API server's side: the orders that wait, their memory, what happens when it dies
    child.py     the process, as client.py holds it: its start, its socket, its end
    rendering_time.py  about how long answers take to be written
    job.py       one of those orders, with the memory that it holds

A body lies in the arena already when it is to be parsed, and a model's outputs when they are to be rendered;
the result goes into other memory there. Between the processes go a few bytes for each:

    API server -> helper    order: parse what lies here, or render it
    helper -> API server    sized: it takes so many bytes; or refused: why
    API server -> helper    put it there; or drop it: it was cancelled, or there is no memory
    helper -> API server    done
"""

from typing import Final

LARGE_JSON_BYTES: Final = 64 * 1024
"""A longer JSON body. So much is decoded in 0.5 ms, or refused in 8 at the worst, where a core is quiet."""
LARGE_COPY_BYTES: Final = 2 * 2**20
"""A longer body, or longer outputs, whose bytes are copied as they are: about 1 ms a copy."""
PIECE_BYTES: Final = 2**20
"""What is copied in one turn of the event loop, of what is larger."""
