"""What benchmarks/serve.py and benchmarks/peers.py are made of.

    workloads.py     the models, one request of each, and the answer it must get
    light_net.py     the network of the 602 KB requests
    servers.py       servers: how each is started, asked and understood; starting and ending one
    peers.py         the other projects' servers, each in an environment of its own
    process_tree.py  CPU time of a server with all its processes and threads, in nanoseconds
    wrk.py           the load generator for closed loops: so many connections, each with one request at a time
    open_loop.py     the load generator for open loops: so many requests a second, whatever comes of it (open_loop.c)
    closed_loop.py   the one for closed loops where wrk is absent or too little: several threads (closed_loop.c)
    generators.py    how both are compiled, asked and read; load.h is what they share
    in_process.py    the model in a loop without any server
    runs.py          rounds, contenders, workloads and connections, one after the other
    limits.py        what is no cell of a table: steady load, overload, idling
    stats.py         medians, ratios, tables

The servers themselves, other than foldserve, are in benchmarks/apps/.
"""
