"""How a request travels between an API server and a worker: memory that both map, and pipes of small records.

    slots/           one API server's shared memory: its slots, how it is allocated, where each tensor lies
    records.py       the ticket (towards a worker) and the done record (back), as fixed-size binary records
    ticket_queue.py  one model's queue: a pipe of tickets, and the turn to read them
    model_table.py   which model versions the server holds, in which rows of everything that there is for each
    scoreboard.py    a few numbers that every process reads: draining, rows queued, who is busy since when
    run_time.py      what a batch takes, which workers measure and API servers forecast by
    region_table.py  the shared memory that clients have registered
    shared_regions.py  the same as requests use it
    control.py       what the supervisor and its children say to each other
    fence.py         when a dead API server's arena is at rest
    handles.py       file descriptors that travel into a worker when it is spawned
    resources.py     all of it, as the parent makes it

Nothing of ours has a name in the file system: memory is memfd_create(2), pipes are anonymous. When the last
process goes, by whatever death, the kernel takes everything back.
"""
