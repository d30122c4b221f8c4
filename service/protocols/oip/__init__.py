"""The Open Inference Protocol (v2) over REST, with Triton's binary tensors, statistics, configuration, classification
and schedule-policy extensions: what `tritonclient[http]`, KServe's clients and `perf_analyzer` speak.

    calls.py       the calls of /v2, and what the head of an inference request asks for
    infer.py       the InferenceProtocol: a body in, an answer out
    request.py     the JSON part of a request, with its bounds
    tensors.py     the elements of one tensor, as JSON and as bytes
    fast.py        the quick way through requests that differ in their numbers alone
    documents.py   what metadata and configuration say of a model
    statistics.py  what was counted of a model, as cumulative counts and nanoseconds

The specification: kserve/open-inference-protocol, inference_rest.md; the extensions: triton-inference-server/server,
docs/protocol/. Where the two differ from each other, and what is done here: docs/protocols.md.
"""
