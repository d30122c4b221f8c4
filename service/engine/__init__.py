"""From a request whose inputs are known to its outputs, in an API server: admission, queue, recovery.

    served.py       what is served, as plain data; status.py: at this moment
    dispatcher.py   queues tickets, hands answers back, over two layers:
    places.py       who has a place in the arena, and who must give one back
    queue_load.py   what the queues hold over all API servers
    model_queue.py  one model version's queue, as this API server sees it; models.py: all of them, by name
    request.py      what is dispatched: a request with a place, and the queue that it travels on
    admission.py    whether it may enter its queue
    output_sizes.py  how much of an arena a request needs, and what never fits
    watchdog.py     whose time is over, which worker hangs
    recovery.py     what becomes of requests whose worker has died
    codec_process/  JSON that is too large for the event loop

The workers' side is worker/; the two meet in ipc/ only.
"""
