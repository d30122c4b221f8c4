"""The gRPC server of one API server, on its event loop."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import grpc

from foldserve.service.frontend.grpc.calls import GrpcCalls, refuse_call
from foldserve.service.frontend.grpc.inference import INFER, STREAM, GrpcInference
from foldserve.service.inference.server_context import ServerContext
from foldserve.service.protocols.lookup import Plans
from foldserve.service.protocols.oip.information import Information
from foldserve.service.protocols.oip.messages import HEALTH, INFERENCE

_IDENTITY_ALONE: Final = 1
"""No compressed messages: grpcio bounds their size before it inflates them, and not after."""


class GrpcServer:
    """Answers every call of messages/*.proto."""

    def __init__(
        self,
        server: ServerContext,
        information: Information,
        plans: Plans,
        addresses: Sequence[str],
        max_message_bytes: int,
        max_calls: int,
    ) -> None:
        """
        Args:
            addresses: see ports.py.
            max_message_bytes: of a request.
            max_calls: that are open at once, each of which may hold a message; more are refused.
        """
        self._addresses = addresses
        self._inference = GrpcInference(server, information, plans)
        handlers = {
            **GrpcCalls(information, server.observers).handlers(),
            INFER: grpc.unary_unary_rpc_method_handler(self._inference.infer),
            STREAM: grpc.stream_stream_rpc_method_handler(self._inference.stream),
        }
        self._server = grpc.aio.server(
            handlers=[_Handlers(handlers)],
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ALONE),
            ],
            maximum_concurrent_rpcs=max_calls,
        )

    async def start(self) -> None:
        """Listen. Raises: RuntimeError when an address cannot be had."""
        for address in self._addresses:
            self._server.add_insecure_port(address)
        await self._server.start()

    async def stop(self, drain_s: float) -> None:
        """Take nothing new, answer what there is, and end; at the latest after so long."""
        self._inference.end()
        await self._server.stop(drain_s)


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio is untyped
    """What answers a call."""

    def __init__(self, handlers: Mapping[str, Any]) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: Any) -> Any:
        """See grpc.GenericRpcHandler. None for a service that is not ours: grpcio says so."""
        path: str = handler_call_details.method
        handler = self._handlers.get(path)
        if handler is None and path.startswith((f"/{INFERENCE}/", f"/{HEALTH}/")):
            return refuse_call(path)
        return handler
