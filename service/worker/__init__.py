"""What runs in a worker process: one thread per instance, each a loop of take, gather, run, scatter, settle.

take.py    which tickets become this instance's: read under the queue's lock, marked, late ones dropped
run.py     a batch: gather rows out of the slots, run, scatter the outputs back, halve when a run raises
loop.py    the instance's life: wait, take, form batches, run them, send the done records
"""
