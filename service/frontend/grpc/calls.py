"""The calls besides inference: the documents of REST (protocols/oip/information.py) as messages, and gRPC's own."""

from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final

import grpc
from google.protobuf.json_format import ParseDict

from foldserve.service.access.gate import Gate
from foldserve.service.access.scopes import scope_of
from foldserve.service.errors import Draining, NotFound, NotImplementedHere, NotReady
from foldserve.service.frontend.grpc.callers import admit
from foldserve.service.frontend.grpc.health import HealthWatch
from foldserve.service.frontend.grpc.received import parsed
from foldserve.service.frontend.grpc.reflection import CALL, answer_all
from foldserve.service.frontend.grpc.statuses import abort, client_error
from foldserve.service.frontend.grpc.streams import AwaitedMessages, Streams
from foldserve.service.inference.context import RequestContext
from foldserve.service.inference.observers import Observers
from foldserve.service.protocols.oip.information import Information
from foldserve.service.protocols.oip.messages import HEALTH, INFERENCE, REFLECTIONS, SERVICES, methods
from foldserve.service.protocols.oip.region_calls import RegionCalls

OF_MODEL: Final = frozenset(
    f"/{INFERENCE}/{call}" for call in ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics")
)
"""Calls whose request names a model."""

Document = dict[str, Any]
Read = Callable[[Any], Awaitable[Document]]
Stream = Callable[[Any, Any], Coroutine[Any, Any, None]]
"""Answers a stream: (its messages, the call's context)."""


class GrpcCalls:
    """Of one API server."""

    def __init__(
        self,
        information: Information,
        regions: RegionCalls,
        observers: Observers,
        streams: Streams,
        gate: Gate,
    ) -> None:
        self._gate = gate
        self._information = information
        self._regions = regions
        self._health = HealthWatch(information.status)
        self._streams = streams
        self._observers = observers
        self._awaited = AwaitedMessages()
        self._methods = {
            INFERENCE: {
                "ServerLive": self._server_live,
                "ServerReady": self._server_ready,
                "ModelReady": self._model_ready,
                "ServerMetadata": self._server_metadata,
                "ModelMetadata": self._model_metadata,
                "ModelConfig": self._model_config,
                "ModelStatistics": self._model_statistics,
                "RepositoryIndex": self._repository_index,
                "SystemSharedMemoryStatus": self._regions_status,
                "SystemSharedMemoryRegister": self._regions_register,
                "SystemSharedMemoryUnregister": self._regions_unregister,
                "CudaSharedMemoryStatus": self._cuda_status,
                "CudaSharedMemoryUnregister": self._cuda_unregister,
            },
            HEALTH: {"Check": self._check},
        }

    def handlers(self) -> dict[str, Any]:
        """What answers each call, by its path."""
        made: dict[str, Any] = {}
        for service, served in self._methods.items():
            messages = methods(service)
            for name, read in served.items():
                path = f"/{service}/{name}"
                request, response = messages[name]
                # As a stream, which is the same on the wire: grpcio would await the message for ever.
                made[path] = grpc.stream_stream_rpc_method_handler(self._call(path, read, request, response))
        watch = f"/{HEALTH}/Watch"
        made[watch] = grpc.stream_stream_rpc_method_handler(self._stream(watch, self._watch))
        for service in REFLECTIONS:
            path = f"/{service}/{CALL}"
            answer = partial(_reflect, service)
            made[path] = grpc.stream_stream_rpc_method_handler(self._stream(path, answer))
        return made

    def _call(self, path: str, read: Read, request: Any, response: Any) -> Callable[..., Awaitable[None]]:
        async def call(_: Any, grpc_context: Any) -> None:
            context = RequestContext("POST", path, "", {})
            context.route = path
            try:
                caller = admit(self._gate, context, grpc_context.invocation_metadata())
                asked = parsed(request, await self._awaited.next_of(grpc_context))
                if caller is not None and path in OF_MODEL:
                    caller.check(scope_of(path), asked.name)
                document = await read(asked)
                written: bytes = ParseDict(document, response()).SerializeToString()
            except Exception as raised:
                error = client_error(raised, context)
                self._observers.notify(context, error.status, context.elapsed_s())
                await abort(grpc_context, error)
            await grpc_context.write(written)
            self._observers.notify(context, 200, context.elapsed_s())

        return call

    def _stream(self, path: str, answer: Stream) -> Callable[..., Awaitable[None]]:
        async def call(came: Any, grpc_context: Any) -> None:
            context = RequestContext("POST", path, "", {})
            context.route = path
            try:
                await self._streams.run(answer(came, grpc_context))
            except Exception as raised:
                error = client_error(raised, context)
                self._observers.notify(context, error.status, context.elapsed_s())
                await abort(grpc_context, error)
            self._observers.notify(context, 200, context.elapsed_s())

        return call

    async def _server_live(self, request: Any) -> Document:
        return {"live": True}

    async def _server_ready(self, request: Any) -> Document:
        return {"ready": self._information.status.ready()}

    async def _model_ready(self, request: Any) -> Document:
        try:
            self._information.check_model_ready(request.name, request.version or None)
        except (NotReady, Draining):
            return {"ready": False}
        return {"ready": True}

    async def _server_metadata(self, request: Any) -> Document:
        return self._information.server()

    async def _model_metadata(self, request: Any) -> Document:
        return self._information.metadata(request.name, request.version or None)

    async def _model_config(self, request: Any) -> Document:
        return {"config": self._information.config(request.name, request.version or None)}

    async def _model_statistics(self, request: Any) -> Document:
        told = await self._information.statistics(request.name or None, request.version or None)
        for of_version in told["model_stats"]:
            del of_version["batch_stats"]  # nothing is told there
        return told

    async def _repository_index(self, request: Any) -> Document:
        return {"models": self._information.index(request.ready)}

    async def _regions_status(self, request: Any) -> Document:
        return {"regions": {one["name"]: one for one in self._regions.status(request.name or None)}}

    async def _regions_register(self, request: Any) -> Document:
        await self._regions.register(request.name, request.key, request.offset, request.byte_size)
        return {}

    async def _regions_unregister(self, request: Any) -> Document:
        await self._regions.unregister(request.name or None)
        return {}

    async def _cuda_status(self, request: Any) -> Document:
        self._regions.cuda_status(request.name or None)
        return {}

    async def _cuda_unregister(self, request: Any) -> Document:
        self._regions.cuda_unregister()
        return {}

    async def _check(self, request: Any) -> Document:
        if request.service not in ("", *SERVICES):
            raise NotFound(
                f"there is no service {request.service[:100]!r}; ask for {INFERENCE}, or for none in particular"
            )
        return {"status": self._health.status(request.service)}

    async def _watch(self, messages: Any, grpc_context: Any) -> None:
        request, _ = methods(HEALTH)["Watch"]
        message = await self._awaited.next_of(grpc_context)
        await self._health.watch(parsed(request, message).service, grpc_context)


async def _reflect(service: str, messages: Any, grpc_context: Any) -> None:
    await answer_all(service, grpc_context)


def refuse_call(path: str) -> Any:
    """The handler of a call that is not served."""

    async def refuse(messages: Any, context: Any) -> None:
        service, _, name = path[1:].partition("/")
        served = ", ".join(methods(service))
        await abort(
            context, NotImplementedHere(f"the call {name[:100]} is not served here; {service} has {served}")
        )

    return grpc.stream_stream_rpc_method_handler(refuse)
