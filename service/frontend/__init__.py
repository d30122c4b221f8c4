"""From bytes on a socket to requests, and from answers to bytes. Owned by the event loop of one API server.

connections/   where the server listens, and who takes a connection
http1/         HTTP/1.1, and the fast path of an ordinary call
asgi.py        everything else, as an ASGI application: routing.py says which call is answered by what,
               asgi_exchange.py carries an inference request, asgi_channel.py sends a response
pages/         what the server says about itself
"""
