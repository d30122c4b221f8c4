"""An API server's shared memory: slots, and the bytes of inputs and outputs that belong to them.

arena.py          the memory: slot headers, then bytes
slot_state.py     the states of a slot, the legal moves, and which side may make each
slot_pool.py      allocates it to requests, a slot and bytes each (private to the API server)
allocator.py      which bytes are free (likewise)
tensor_layout.py  where in an allocation each tensor lies
slot_counts.py    how many slots are in which state, for the metrics
"""
