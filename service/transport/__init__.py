"""How a request travels between an API server and a worker: memory that both map, and pipes of small records.

    arena.py     one API server's shared memory: slot headers and the bytes of inputs and outputs
    extents.py   which bytes of an arena are free (the API server's private knowledge)
    records.py   the ticket (towards a worker) and the done record (back), as fixed-size binary records
    queues.py    one model's queue: a pipe of tickets, and the turn to read them
    board.py     a few numbers that every process reads: draining, rows queued, who is busy since when
    handles.py   file descriptors that travel into a worker when it is spawned

Nothing here has a name in the file system: memory is memfd_create(2), pipes are anonymous. When the last
process goes, by whatever death, the kernel takes everything back.
"""
