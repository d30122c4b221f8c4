"""What runs in a worker process: one thread per instance, each a loop of take, gather, run, scatter, settle.

main.py      the process: loads every model, then waits for its lifeline
loading_order.py  in which order, and how long one may take
instance.py  an instance's thread: loads the session, then serves
batcher.py      the instance's life: a batch, then a part of the large request under way, and again
gate.py      when the next batch is taken, where several instances share a device
collect.py   the next batch: which of the tickets that wait go together
turn.py      whose turn it is to read the queue
dequeue.py      which tickets become this instance's: their slots are marked, late ones dropped; the way back
gather.py    a batch's inputs: in place, or copied together out of the slots
batch_runner.py       a batch: run it, scatter the outputs back, in smaller parts when a run raises
times.py     what the batches take, told to everybody
oom_backoff.py  how many rows a run may have, once the device had no room for more
"""
