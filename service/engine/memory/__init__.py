"""The memory of requests in an API server's arena.

arena_memory.py   who gets a slot and bytes, who has to give them back, where the outputs lie
output_sizes.py   how many bytes the outputs of a request may need
"""
