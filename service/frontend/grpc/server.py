"""The gRPC server of one API server, on its event loop."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import grpc

from foldserve.service.frontend.grpc.calls import GrpcCalls, refuse_call
from foldserve.service.frontend.grpc.inference import INFER, STREAM, GrpcInference
from foldserve.service.frontend.grpc.streams import Streams
from foldserve.service.inference.server_context import ServerContext
from foldserve.service.protocols.lookup import Plans
from foldserve.service.protocols.oip.information import Information
from foldserve.service.protocols.oip.messages import SERVICES
from foldserve.service.protocols.oip.region_calls import RegionCalls

_OPTIONS: Final = (
    ("grpc.so_reuseport", 1),
    ("grpc.max_send_message_length", -1),
    # Compressed messages come as they are: received.py.
    ("grpc.per_message_decompression", 0),
    # A client that is gone without a word is found out, with what its streams hold.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Clients may ping as often as their own keepalive can (gRPC's least is 10 s; less, as networks vary), also when
    # they ask for nothing; who does it more often is sent away. gRPC's default allows one in five minutes.
    ("grpc.http2.min_ping_interval_without_data_ms", 9_000),
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.keepalive_permit_without_calls", 1),
)


class GrpcServer:
    """Answers every call of messages/*.proto."""

    def __init__(
        self,
        server: ServerContext,
        information: Information,
        regions: RegionCalls,
        plans: Plans,
        addresses: Sequence[str],
        max_message_bytes: int,
        max_calls: int,
    ) -> None:
        """
        Args:
            addresses: see ports.py.
            max_message_bytes: of a request, as it is sent.
            max_calls: that are open at once, each of which may hold a message; more are refused.
        """
        self._addresses = addresses
        self._streams = Streams()
        inference = GrpcInference(server, information, plans, self._streams)
        handlers = {
            **GrpcCalls(information, regions, server.observers, self._streams).handlers(),
            INFER: grpc.unary_unary_rpc_method_handler(inference.infer),
            STREAM: grpc.stream_stream_rpc_method_handler(inference.stream),
        }
        self._server = grpc.aio.server(
            handlers=[_Handlers(handlers)],
            options=[*_OPTIONS, ("grpc.max_receive_message_length", max_message_bytes)],
            maximum_concurrent_rpcs=max_calls,
        )

    async def start(self) -> None:
        """Listen. Raises: RuntimeError when an address cannot be had."""
        for address in self._addresses:
            self._server.add_insecure_port(address)
        await self._server.start()

    async def stop(self, drain_s: float) -> None:
        """Take nothing new, answer what there is, and end; at the latest after so long."""
        self._streams.end()
        await self._server.stop(drain_s)


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio is untyped
    """What answers a call."""

    def __init__(self, handlers: Mapping[str, Any]) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: Any) -> Any:
        """See grpc.GenericRpcHandler. None for a service that is not ours: grpcio says so."""
        path: str = handler_call_details.method
        handler = self._handlers.get(path)
        if handler is None and path.startswith(tuple(f"/{service}/" for service in SERVICES)):
            return refuse_call(path)
        return handler
