"""Quick ways for the most common bodies of one model, beside their protocols.

codec.py         what such a way is
json_rows.py     rows of floats as JSON
tensor_body.py   an answer that is one tensor's bytes
packer.py        a few numbers to bytes
repeat_cache.py  what came twice
"""
