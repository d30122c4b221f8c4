"""Asks a running server, from Python: numpy arrays in, numpy arrays out.

    client.py, async_client.py   what a program calls
    requests.py                  each call as steps, the same for both: what to send, when to send it again
    calls.py, answers.py         one HTTP request, and what its answer says; pure
    tensors.py, pictures.py      what a caller gives, as it is sent
    deadline.py                  how long, and how soon again
    address.py                   where the server is, and how it is trusted
    connections.py               pools of connections: urllib3's
    async_connections.py         and aiohttp's
    errors.py                    everything that a call raises

Imports numpy and an HTTP library, and nothing of the server but the table of datatypes: a machine that only asks needs
no more (tests/service/client/test_imports.py).
"""
