"""How a request travels between an API server and a worker: memory that both map, and pipes of small records.

    arena.py     one API server's shared memory: slot headers and the bytes of inputs and outputs
    slots.py     a request's place in it, a slot and bytes: handed out and taken back (private to the API server)
    extents.py   which bytes of an arena are free (likewise)
    layout.py    where in a place each tensor lies
    records.py   the ticket (towards a worker) and the done record (back), as fixed-size binary records
    queues.py    one model's queue: a pipe of tickets, and the turn to read them
    board.py     a few numbers that every process reads: draining, rows queued, who is busy since when
    fence.py     when a dead API server's arena is at rest
    census.py    what waits and is in flight, counted for a scrape
    handles.py   file descriptors that travel into a worker when it is spawned
    transport.py all of it, as the parent makes it

Nothing here has a name in the file system: memory is memfd_create(2), pipes are anonymous. When the last
process goes, by whatever death, the kernel takes everything back.
"""
