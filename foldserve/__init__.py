"""Fold, export and serve torch networks; docs/your-network.md begins with a network of your own.

    export_model            an nn.Module, to files that a server trusts
    Client, AsyncClient     ask a running server: client["mlp"](x)

Each is imported when it is asked for: a client needs no torch. foldserve.service is the server, foldserve.models the
networks and the export.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from foldserve.models.export import ExportError, ExportResult, export_model
    from foldserve.service.client.calls import ClientError, ServerRefused, ServerUnreachable
    from foldserve.service.client.clients import AsyncClient, Client

_MODULES: Final = {
    "AsyncClient": "foldserve.service.client.clients",
    "Client": "foldserve.service.client.clients",
    "ClientError": "foldserve.service.client.calls",
    "ExportError": "foldserve.models.export",
    "ExportResult": "foldserve.models.export",
    "ServerRefused": "foldserve.service.client.calls",
    "ServerUnreachable": "foldserve.service.client.calls",
    "export_model": "foldserve.models.export",
}
__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "ExportError",
    "ExportResult",
    "ServerRefused",
    "ServerUnreachable",
    "export_model",
]


def __getattr__(name: str) -> Any:
    # Late, since the server imports this package first, and knows no networks.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
