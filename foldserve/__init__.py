"""Fold, export and serve torch networks; docs/your-network.md begins with a network of your own.

    export_model    an nn.Module, to files that a server trusts; torch is imported when it is asked for

foldserve.service is the server, foldserve.models the networks and the export.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foldserve.models.export import ExportError, ExportResult, export_model

__all__ = ["ExportError", "ExportResult", "export_model"]


def __getattr__(name: str) -> Any:
    # Late, since the server imports this package first, and knows no networks.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from foldserve.models import export

    return getattr(export, name)
