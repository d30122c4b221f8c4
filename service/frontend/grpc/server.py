"""The gRPC server of one API server, on its event loop."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import grpc

from foldserve.service.access.gate import Gate
from foldserve.service.errors import ServiceError
from foldserve.service.frontend.connections.handshakes import HANDSHAKE_S
from foldserve.service.frontend.connections.tls import Tls
from foldserve.service.frontend.grpc.callers import admit
from foldserve.service.frontend.grpc.calls import GrpcCalls, refuse_call
from foldserve.service.frontend.grpc.credentials import server_credentials
from foldserve.service.frontend.grpc.inference import INFER, STREAM, GrpcInference
from foldserve.service.frontend.grpc.statuses import abort
from foldserve.service.frontend.grpc.streams import Streams
from foldserve.service.inference.context import RequestContext
from foldserve.service.inference.observers import Observers
from foldserve.service.inference.server_context import ServerContext
from foldserve.service.protocols.lookup import Plans
from foldserve.service.protocols.oip.grpc_infer import OIP_GRPC
from foldserve.service.protocols.oip.information import Information
from foldserve.service.protocols.oip.messages import SERVICES
from foldserve.service.protocols.oip.region_calls import RegionCalls

_OPTIONS: Final = (
    ("grpc.so_reuseport", 1),
    ("grpc.max_send_message_length", -1),
    ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_S * 1000)),
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
        gate: Gate,
        tls: Tls | None,
    ) -> None:
        """
        Args:
            addresses: see ports.py.
            max_message_bytes: of a request, as it is sent.
            max_calls: that are open at once, each of which may hold a message; more are refused.
            gate: what is asked of a call. tls: None where nothing is encrypted.
        """
        self._addresses = addresses
        self._credentials = None if tls is None else server_credentials(tls)
        self._streams = Streams()
        inference = GrpcInference(server, information, plans, self._streams, gate)
        handlers = {
            **GrpcCalls(information, regions, server.observers, self._streams, gate).handlers(),
            INFER: grpc.unary_unary_rpc_method_handler(inference.infer),
            STREAM: grpc.stream_stream_rpc_method_handler(inference.stream),
        }
        self._server = grpc.aio.server(
            handlers=[_Handlers(handlers, gate, server.observers)],
            options=[*_OPTIONS, ("grpc.max_receive_message_length", max_message_bytes)],
            maximum_concurrent_rpcs=max_calls,
        )

    async def start(self) -> None:
        """Listen. Raises: RuntimeError when an address cannot be had."""
        for address in self._addresses:
            if self._credentials is None:
                self._server.add_insecure_port(address)
            else:
                self._server.add_secure_port(address, self._credentials)
        await self._server.start()

    async def stop(self, drain_s: float) -> None:
        """Take nothing new, answer what there is, and end; at the latest after so long."""
        self._streams.end()
        await self._server.stop(drain_s)


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio is untyped
    """What answers a call."""

    def __init__(self, handlers: Mapping[str, Any], gate: Gate, observers: Observers) -> None:
        self._handlers = handlers
        self._gate = gate
        self._observers = observers

    def service(self, handler_call_details: Any) -> Any:
        """See grpc.GenericRpcHandler. None for a service that is not ours: grpcio says so."""
        path: str = handler_call_details.method
        handler = self._handlers.get(path)
        if handler is None and not path.startswith(tuple(f"/{service}/" for service in SERVICES)):
            return None
        if self._gate.keys is None:
            return handler or refuse_call(path)
        context = RequestContext("POST", path, "", {})
        try:
            admit(self._gate, context, handler_call_details.invocation_metadata)
        except ServiceError as error:
            return self._refuse(context, error)
        return handler or refuse_call(path)

    def _refuse(self, context: RequestContext, error: ServiceError) -> Any:
        """The handler of a call whose caller is refused: before anything of it is read."""

        async def refuse(messages: Any, grpc_context: Any) -> None:
            context.route, context.error_code = context.path, error.code
            if context.path in (INFER, STREAM):
                context.protocol = OIP_GRPC.name
                self._observers.finished(context, error.status, context.elapsed_s())
            else:
                self._observers.notify(context, error.status, context.elapsed_s())
            await abort(grpc_context, error)

        return grpc.stream_stream_rpc_method_handler(refuse)
