"""The server as processes: the supervisor, which keeps the others alive, and what an API server is put together from.

main.py              `foldserve serve`: from settings to a running server
supervisor.py        watches processes, informs them of each other, and ends them in order
children.py          starts them, and again where they ended; helpers.py: what helps them
model_control.py     the model table's one writer: which version is in which row, and in which state
liveness.py          which of them answer; orphans.py buries those that nobody waits for
api_server.py        the parts of one API server, put together; api_models.py: its part in each model
litserve_adapter.py  the one file that knows LitServe and uvicorn
listeners.py         how listening sockets end
"""
