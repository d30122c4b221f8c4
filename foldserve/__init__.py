"""Fold, export and serve torch networks; docs/your-network.md begins with a network of your own.

    export_model            an nn.Module, to files that a server trusts
    Client, AsyncClient     ask a running server: client["mlp"](x); docs/client.md

Each is imported when it is asked for: a client needs no torch, and no server. foldserve.service is the server,
foldserve.models the networks and the export.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from foldserve.models.export import ExportError, ExportResult, export_model
    from foldserve.service.client.answers import Label, Prediction
    from foldserve.service.client.async_client import AsyncClient
    from foldserve.service.client.client import Client
    from foldserve.service.client.errors import (
        BadInput,
        ClientError,
        DeadlinePassed,
        ServerRefused,
        ServerUnreachable,
    )

_MODULES: Final = {
    "AsyncClient": "foldserve.service.client.async_client",
    "BadInput": "foldserve.service.client.errors",
    "Client": "foldserve.service.client.client",
    "ClientError": "foldserve.service.client.errors",
    "DeadlinePassed": "foldserve.service.client.errors",
    "ExportError": "foldserve.models.export",
    "ExportResult": "foldserve.models.export",
    "Label": "foldserve.service.client.answers",
    "Prediction": "foldserve.service.client.answers",
    "ServerRefused": "foldserve.service.client.errors",
    "ServerUnreachable": "foldserve.service.client.errors",
    "export_model": "foldserve.models.export",
}
__all__ = [
    "AsyncClient",
    "BadInput",
    "Client",
    "ClientError",
    "DeadlinePassed",
    "ExportError",
    "ExportResult",
    "Label",
    "Prediction",
    "ServerRefused",
    "ServerUnreachable",
    "export_model",
]


def __getattr__(name: str) -> Any:
    # Late, since the server imports this package first, and knows no networks.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
