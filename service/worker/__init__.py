"""What runs in a worker process: one thread per instance, each a loop of dequeue, gather, run, scatter, complete.

main.py             the process: listens to the supervisor
models.py           which models it has, as the model table says
model.py            one of them: its instances are loaded, serve, and are ended
loading_order.py    in which order they are loaded, and how long one may take
instance.py         an instance's thread: loads the session, then serves
instance_loop.py    an instance's loop: a batch, then a part of the large request under way, and again
device_gate.py      when an instance may begin its next batch, where several share a device
batcher.py          the next batch: the batch window, and which waiting tickets go together
ageing.py           when a batch begins with a lower priority level
turn.py             whose turn it is to read the queue
ticket_consumer.py  marks the slots of an instance's tickets, drops expired ones; sends done records
batches/            one batch: gathered, run, scattered
times.py            what the batches take, published on the scoreboard
"""
