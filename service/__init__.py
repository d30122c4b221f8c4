"""The server: artifacts in, answers out. Start reading here.

The processes: `foldserve serve` is the supervisor; it starts API servers, which speak HTTP, and workers, which run
models. They share memory and pipes that are made before any of them starts (transport/). Around them: cli.py, config.py
(the settings), repository.py, artifact.py and model_config.py (what is served), file_sums.py (whether its files are
still those), connections/ (where it listens, and who takes a connection), serve.py (puts all together), supervisor.py
(keeps it alive), orphans.py x, litserve_shell.py (LitServe and uvicorn). Processes that help
them: codec_process/ reads and writes what is large, log_pump.py copies what all write to stdout and stderr
(log_pipes.py), exporter.py writes /metrics (scrapes.py).

The life of a request:

 1. Its head arrives at an API server, in a subclass of uvicorn's protocol. An ordinary `POST /predict` is kept there
    (fastpath/protocol.py, head_reader.py, heads.py); whatever else goes through ASGI (http.py, predict.py): the long
    way, which ends in the same queue (dispatch_engine.py).
 2. It is given a place: a slot and bytes in the API server's arena (transport/slots.py, arena.py). A raw body is
    received straight into it; JSON and npy are decoded into it (fastpath/exchange.py, codecs/), large ones
    by the API server's codec process (codec_process/).
 3. Its inputs are checked against the model's signature (signature.py): what it can get wrong, it gets wrong here,
    before it shares a batch with others.
 4. It is admitted, or refused with the time after which to come again (admission.py), and its ticket, a record of
    fixed size, goes into the model's pipe (dispatch.py, transport/records.py, queues.py).
 5. The instance of the model whose turn it is, a thread in some worker, reads tickets until their rows make a batch of
    agreeing shapes, and passes the turn on (worker/collect.py, turn.py). Their slots are marked as taken; the late and
    the given-up are dropped (worker/take.py).
 6. Their rows are gathered, padded to a bucket and run, and the outputs scattered back into the slots (worker/run.py,
    buckets.py, backends/). A run that raises is halved until the guilty request is alone.
 7. The slots are marked as done, and a record for each goes into its API server's pipe (worker/take.py).
 8. The API server's event loop reads it, the answer is encoded out of the slot and written, the place is free again
    (dispatch.py, fastpath/exchange.py), and the request is counted (request_ring.py, metrics.py).

Which side may move a slot, and when, is one table: lifecycle.py. What happens when a process dies in any of these
steps: recovery.py, from what supervisor.py tells. Nothing here imports `models`; torch only in its backend.
"""
