"""Which call needs which scope. One table for all protocols: REST by the route's pattern, gRPC by the call's path.

A call that is not in the table needs CONTROL, so that one that was forgotten is closed and not open; a test compares
the table with the routes and calls that there are.
"""

from typing import Final

OPEN: Final = 0
"""No key is asked for: whether the server lives and is ready, for those who start and balance servers; and the page at
/docs, which asks for a key itself and tells nothing without one."""
INFER: Final = 1
"""Running models, and reading what they are: names, signatures, statistics."""
CONTROL: Final = 2
"""Changing what is served, and what the server may read and write."""
METRICS: Final = 4
"""/metrics."""

SCOPES: Final = {"infer": INFER, "control": CONTROL, "metrics": METRICS}
"""By the words of the keys file."""

_GRPC: Final = "/inference.GRPCInferenceService/"
_HEALTH: Final = "/grpc.health.v1.Health/"
_SHARED: Final = "/v2/systemsharedmemory/"
_CUDA: Final = "/v2/cudasharedmemory/"

NEEDED: Final = {
    **dict.fromkeys(("/", "/health", "/ping", "/v2/health/live", "/v2/health/ready"), OPEN),
    **dict.fromkeys(("/docs", "/docs/{file}"), OPEN),
    **dict.fromkeys((f"{_GRPC}ServerLive", f"{_GRPC}ServerReady"), OPEN),
    **dict.fromkeys((f"{_HEALTH}Check", f"{_HEALTH}Watch"), OPEN),
    "/metrics": METRICS,
    **dict.fromkeys(
        (
            *("/predict", "/predict/{model}", "/predict/{model}/versions/{version}", "/invocations"),
            *("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"),
            *("/v1/models/{model}:predict", "/v1/models/{model}/versions/{version}:predict"),
            *("/predictions/{model}", "/predictions/{model}/{version}"),
            *(f"{_GRPC}ModelInfer", f"{_GRPC}ModelStreamInfer"),
        ),
        INFER,
    ),
    **dict.fromkeys(
        (
            *("/info", "/openapi.json"),
            *("/v2", "/v2/", "/v2/models", "/v2/models/stats", "/v2/repository/index"),
            *("/v2/models/{model}", "/v2/models/{model}/versions/{version}"),
            *("/v2/models/{model}/ready", "/v2/models/{model}/versions/{version}/ready"),
            *("/v2/models/{model}/config", "/v2/models/{model}/versions/{version}/config"),
            *("/v2/models/{model}/stats", "/v2/models/{model}/versions/{version}/stats"),
            *("/v1/models", "/v1/models/{model}", "/v1/models/{model}/versions/{version}"),
            *("/models", "/models/{model}", "/models/{model}/{versions}"),
            *(f"{_SHARED}status", f"{_SHARED}region/{{name}}/status", f"{_GRPC}SystemSharedMemoryStatus"),
            *(f"{_CUDA}status", f"{_CUDA}region/{{name}}/status", f"{_GRPC}CudaSharedMemoryStatus"),
            *(f"/grpc.reflection.{of}.ServerReflection/ServerReflectionInfo" for of in ("v1", "v1alpha")),
            *(f"{_GRPC}{call}" for call in ("ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig")),
            *(f"{_GRPC}{call}" for call in ("ModelStatistics", "RepositoryIndex")),
        ),
        INFER,
    ),
    # What a region names is read and written with the server's own rights.
    **dict.fromkeys(
        (
            *(f"{_SHARED}region/{{name}}/{call}" for call in ("register", "unregister")),
            f"{_SHARED}unregister",
            *(f"{_GRPC}SystemSharedMemory{call}" for call in ("Register", "Unregister")),
            *(
                f"{_CUDA}unregister",
                f"{_CUDA}region/{{name}}/unregister",
                f"{_GRPC}CudaSharedMemoryUnregister",
            ),
        ),
        CONTROL,
    ),
}
"""By pattern or path."""


def scope_of(call: str) -> int:
    """What a call needs. call: the route's pattern, or a path of gRPC."""
    return NEEDED.get(call, CONTROL)


def words(scopes: int) -> str:
    """Scopes as the keys file has them."""
    return ", ".join(word for word, scope in SCOPES.items() if scopes & scope) or "none"
