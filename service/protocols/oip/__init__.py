"""The Open Inference Protocol (v2) over REST and gRPC, with Triton's binary tensors, statistics, configuration,
classification, schedule-policy and system shared memory extensions: what `tritonclient`, KServe's clients and
`perf_analyzer` speak.

    calls.py       the calls of /v2, and what the head of an inference request asks for
    infer.py       the InferenceProtocol: a body in, an answer out
    request.py     the JSON part of a request, with its bounds
    tensors.py     the elements of one tensor, as JSON and as bytes
    fast.py        the quick way through requests that differ in their numbers alone
    shared_memory.py tensors in shared memory of clients
    region_calls.py  the calls that register it
    information.py what is told besides inference, as documents
    documents.py   what metadata and configuration say of a model
    statistics.py  what was counted of a model, as cumulative counts and nanoseconds

Over gRPC the same, in protobuf (frontend/grpc/ serves it, with the other calls):

    grpc_infer.py  the InferenceProtocol
    wire.py        the outline of a message, without parsing it
    messages/      the messages

The specification: kserve/open-inference-protocol, inference_rest.md and inference_grpc.md; the extensions:
triton-inference-server/server, docs/protocol/. Where the two differ from each other, and what is done here:
docs/protocols.md.
"""
