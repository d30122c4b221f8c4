"""HTTP/1.1, and the fast path of an ordinary POST /predict: from uvicorn's parser to a slot and back, without an ASGI
scope.

    connection.py    a subclass of uvicorn's httptools protocol that keeps ordinary calls to itself, over two layers:
    parsing.py       from bytes to heads and parts of bodies
    lifetime.py      keep-alive, clients that go, the end of the server
    heads/           what a head says: cache.py which calls are ordinary, by exact targets and plain headers; reader.py
                     reads such heads without the parser, those seen before by their bytes; rules.py what none may say
    exchange.py      one ordinary call: the bytes of its response; its life is inference/request.py's
    response_lines.py  lines that the heads of many answers share
    direct_read.py   large bodies, read from the socket into their slots
    flow/            control.py when a connection's bytes may be read, throttle.py how quickly refused clients may come
                     again, send_buffers.py answers that clients do not take, resets.py whether a client has left
    asgi_cycle.py    uvicorn's request cycle, for whatever is not ordinary

Whatever is not ordinary (other queries than ?version=, chunked bodies, Expect, what is sent ahead, other types,
anything wrong with the head) goes through ASGI, uvicorn and frontend/asgi.py, which answers every case. Both paths
lead to the same InferenceRequest, and a test sends the same calls to both.
"""
