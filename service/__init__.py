"""The server: artifacts in, answers out. Start reading here.

The folders are layers. A folder imports from those below it and never from one above (tests/service/test_layers.py):

    cli.py         the command `foldserve`
    server/        the processes: the supervisor, API servers put together, LitServe and uvicorn
    frontend/      sockets, HTTP, gRPC and pages
    protocols/     what clients send and are answered
    inference/     one request while it is answered
    engine/        queues and recovery in an API server | worker/: batches in a worker | commands/: inspect, predict
    client/        asks a server, from Python
    metrics/       what is counted | repository/: what is served | access/: who may ask for what
    ipc/           memory and pipes that processes share | backends/: runs models | codecs/: bytes and arrays
    setting_sources.py  resolves settings from command line, environment and file | arguments.py: argparse as it is used
    settings.py    the table of settings | artifact/: the contract with the export
    options.py     rows of such a table, and the values that they may have
    documents.py   parsing of untrusted YAML and JSON | logs/
    host/          what Linux offers | errors.py | did_you_mean.py

The processes: `foldserve serve` is the supervisor; it starts API servers, which speak HTTP, and workers, which run
models. They share memory and pipes that are made before any of them starts. Processes that help them:
engine/codec_process/ reads and writes what is large, logs/pump.py copies what all write to stdout and stderr,
metrics/exporter.py writes /metrics.

The life of a request:

 1. Its head arrives at an API server, in a subclass of uvicorn's protocol. An ordinary `POST /predict` is kept there
    (frontend/http1/connection.py, heads/reader.py, heads/cache.py); whatever else goes through ASGI (frontend/asgi.py,
    asgi_exchange.py), or by gRPC (frontend/grpc/). All create an InferenceRequest (inference/request.py), which owns
    the request until it ends.
 2. Its body is received (inference/receiving.py, partial_body.py). Raw rows go straight into a slot and bytes of the
    API server's arena, allocated for it (engine/memory/arena_memory.py, ipc/slots/slot_pool.py, arena.py). JSON and npy
    are parsed (inference/parsing.py) by the request's protocol (codecs/protocol.py, protocols/), large and compressed
    ones in the API server's codec process (engine/codec_process/).
 3. What was parsed is checked against the model's signature (artifact/signature.py), and copied into the arena: an
    invalid request is refused here, before it shares a batch with others.
 4. It is admitted, or refused with a Retry-After (engine/admission.py), and its ticket, a record
    of fixed size, goes into the model's pipe (engine/dispatcher.py, ipc/records.py, ipc/ticket_queue.py).
 5. The instance of the model whose turn it is, a thread in some worker, reads tickets until their rows make a batch of
    agreeing shapes, and passes the turn on (worker/batcher.py, turn.py). Their slots are marked as taken; expired and
    cancelled requests are dropped (worker/ticket_consumer.py).
 6. Their rows are gathered, padded to a bucket and run, and the outputs scattered back into the slots
    (worker/batches/, repository/buckets.py, backends/). A run that raises is halved until the guilty request is alone.
 7. The slots are marked as done, and a record for each goes into its API server's pipe (worker/ticket_consumer.py).
 8. The API server's event loop reads it (engine/dispatcher.py), the protocol renders the answer out of the slot, the
    memory is freed (inference/request.py), the answer is written (frontend/http1/exchange.py), and the request is
    counted (inference/observers.py, metrics/request_ring.py).

Which side may move a slot, and when, is one table: ipc/slots/slot_state.py. What happens when a process dies in any of
these steps: engine/recovery.py, which server/supervisor.py informs. Nothing here imports foldserve.models; torch only
in its backend.

Which model versions there are is one table in shared memory, ipc/model_table.py, that the supervisor writes
(server/model_control.py). Every process has views of its rows: engine/model_queue.py in an API server, worker/model.py
in a worker; queues, cells of the scoreboard and metrics are addressed by row.
"""

if __name__ != "foldserve.service":
    from foldserve.one_name import lead_to_foldserve

    lead_to_foldserve("service")
