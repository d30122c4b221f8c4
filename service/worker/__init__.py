"""What runs in a worker process: one thread per instance, each a loop of take, gather, run, scatter, settle.

main.py      the process: loads every model, then waits for its lifeline
instance.py  an instance's thread: loads the session, then serves
loop.py      the instance's life: wait, take, form batches, run them, send the done records
take.py      which tickets become this instance's: read under the queue's lock, marked, late ones dropped
gather.py    a batch's inputs: in place, or copied together out of the slots
run.py       a batch: run it, scatter the outputs back, in smaller parts when a run raises
ceilings.py  how many rows a run may have, once the device had no room for more
"""
