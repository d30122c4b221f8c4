"""The server as processes: the supervisor, which keeps the others alive, and what an API server is put together from.

main.py              `foldserve serve`: from settings to a running server
supervisor.py        starts, watches, replaces and ends processes
liveness.py          which of them answer; orphans.py buries those that nobody waits for
api_server.py        the parts of one API server, put together
litserve_adapter.py  the one file that knows LitServe and uvicorn
listeners.py         how listening sockets end
"""
