"""From a request whose inputs are known to its outputs, in an API server: admission, queue, recovery.

    served.py        what is served, as plain data; status.py: at this moment
    dispatcher.py    sends tickets, receives done records, completes requests; built on two layers:
    arena_memory.py  allocates the arena to requests
    queue_load.py    what the queues hold over all API servers
    model_queue.py   one model version's queue, as this API server sees it; models.py: all of them, by name
    request.py       what is dispatched: a request with memory in the arena, and its queue
    admission.py     whether a request may enter its queue
    output_sizes.py  how much of an arena a request needs, and what never fits
    watchdog.py      deadlines, runs that take too long, stalled queues
    recovery.py      what happens to requests whose worker has died
    codec_process/   parses and renders what is too large for the event loop

The workers' side is worker/; the two meet in ipc/ only.
"""
