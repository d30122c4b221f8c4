"""Who may ask for what: keys, their scopes and limits. No sockets, no HTTP beyond names and values of headers.

    scopes.py       which call needs which scope: one table for all protocols
    key_file.py     from YAML to checked keys; says what is wrong without showing a key
    key_table.py    the keys in force, in shared memory: the supervisor writes, API servers read
    keyring.py      the keys in an API server: from what a client presents to the caller that it is
    quotas.py       a caller's limits, counted over all API servers
    cross_origin.py which pages of other origins a browser may let in (CORS)
    gate.py         all of it as the frontend sees it

The supervisor reads the file, at the start and when it changes (server/access/reloading.py). An API server is told,
takes the keys from the table, and forgets what it had concluded from heads: a head that was accepted is an accepted
head until the keys change.
"""
