"""One batch, from its tickets to their outputs.

batch_runner.py  runs it, and scatters the outputs back; in smaller parts when a run raises
output_thread.py gives its outputs out while the next one runs
gather.py        its inputs: in place, or copied together out of the slots
pieces.py        rows that are run a piece at a time, and what their outputs must be
oom_backoff.py   how many rows a run may have, once the device did not have memory for more
"""
