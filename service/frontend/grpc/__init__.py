"""The Open Inference Protocol over gRPC, and gRPC's own services: a server beside the one of HTTP in each API server.

    ports.py      where it listens; in the parent, before any child exists
    server.py     the server: starts and ends with its API server
    inference.py  ModelInfer and ModelStreamInfer
    exchange.py   one inference request
    received.py   messages as they came, which may be compressed
    calls.py      the other calls of one answer
    health.py     grpc.health.v1.Health: whether the server is ready, and when that changes
    reflection.py grpc.reflection: which services and messages there are
    streams.py    calls that go on until the server ends
    callers.py    who makes a call
    credentials.py the certificate that the server shows
    statuses.py   what a client is told of an error

grpcio and protobuf come with the extra `grpc`. Only API servers that serve gRPC import them, and only after they were
forked, for grpcio does not survive a fork. So nothing but ports.py is imported before that.
"""
