"""The short way of an ordinary POST /predict: from uvicorn's parser to a slot and back, without an ASGI scope.

    protocol.py   HTTP mechanics: a subclass of uvicorn's httptools protocol that keeps ordinary calls to itself
    heads.py      which calls are ordinary: exact paths and plain headers; heads that were seen before
    exchange.py   one such call: its body into a slot, its answer out of it
    flow.py       when a connection's bytes may be read
    pace.py       how quickly refused clients may come again

Whatever is not ordinary (queries, chunked bodies, Expect, pipelining, other types, anything wrong with the head)
goes the long way, through uvicorn and service/http.py, which answers every case. Both ways share codecs,
signatures, errors and the dispatcher, and a test sends the same calls both ways.
"""
