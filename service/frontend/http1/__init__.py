"""HTTP/1.1, and the fast path of an ordinary POST /predict: from uvicorn's parser to a slot and back, without an ASGI
scope.

    connection.py    HTTP mechanics: a subclass of uvicorn's httptools protocol that keeps ordinary calls to itself
    head_cache.py    which calls are ordinary: exact targets and plain headers
    head_reader.py   reads such heads without the parser, those that were seen before by their bytes
    exchange.py      one such call: the bytes of its response; its life is inference/request.py's
    answer_lines.py  lines that the heads of many answers share
    filling.py       large bodies, read from the socket into their slots
    flow_control.py  when a connection's bytes may be read
    unread.py        answers that their clients do not take
    throttle.py      how quickly refused clients may come again
    asgi_cycle.py    uvicorn's request cycle, for whatever is not ordinary
    resets.py        whether a client that sends no more has left
    rules.py         what no request may be, and what its target says

Whatever is not ordinary (other queries than ?version=, chunked bodies, Expect, what is sent ahead, other types,
anything wrong with the head) goes through ASGI, uvicorn and frontend/asgi.py, which answers every case. Both paths
lead to the same InferenceRequest, and a test sends the same calls both ways.
"""
