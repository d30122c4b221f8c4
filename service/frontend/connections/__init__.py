"""How connections come to an API server, before any of them says a word.

addresses.py binds what `--host` names, in the parent. acceptor.py takes connections off those sockets in every API
server, as many as are its share (shares.py). descriptors.py knows how many open files there may be; a connection for
which none is left is a guest (guests.py): its health checks are answered, anything else gets 503 and may try again.
Nothing here knows models or requests.
"""
