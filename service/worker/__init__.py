"""What runs in a worker process: one thread per instance, each a loop of take, gather, run, scatter, complete.

main.py           the process: listens to the supervisor
models.py         which models it has, as the model table says
model.py          one of them: its instances are loaded, serve, and are ended
loading_order.py  in which order they are loaded, and how long one may take
instance.py       an instance's thread: loads the session, then serves
instance_loop.py  the instance's life: a batch, then a part of the large request under way, and again
gate.py           when the next batch is taken, where several instances share a device
batcher.py        the next batch: which of the tickets that wait go together
turn.py           whose turn it is to read the queue
dequeue.py        which tickets become this instance's: their slots are marked, late ones dropped; the way back
batches/          one batch: gathered, run, scattered
times.py          what the batches take, published on the scoreboard
"""
