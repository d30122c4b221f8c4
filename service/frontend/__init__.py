"""From bytes on a socket to requests, and from answers to bytes. Owned by the event loop of one API server.

connections/   where the server listens, and who takes a connection
http1/         HTTP/1.1, and the short way of an ordinary call
asgi.py        everything else, as an ASGI application: routing.py says which call is answered by what
body.py        bodies on the long way; receiving.py on the short one; holdings.py bounds both
pages/         what the server says about itself
"""
