"""The export: from an nn.Module to files that a server trusts. The life of one export:

 1. copying.py, example.py        a deep copy in eval mode and float32; the example inputs, checked and
    flattened
 2. capture.py, cleaning.py       one graph of ATen operators with symbolic rows, or a refusal with the mend
 3. reference.py, sampling.py     the eager network's answers in float64, on the example and on fresh inputs
 4. fold/                         batch norms into the weights around them, proved in float64
 5. precision.py, mixed.py,       fp16 or bf16 where asked for: which operators, and the casts between them
    convert.py
 6. to_torchscript.py, to_onnx.py both files from that graph, or one: forms.py
 7. verify.py, difference.py      both files against the eager answers
    verify_layers.py, layers.py   and each layer of them by itself; names the guilty one
 8. memory.py, manifest.py,       bytes of weights and of a row; manifest.json and reference.npz; renamed into
    artifact.py                   place in one step

The order is a table in pipeline.py. The command line is cli.py.
"""

from typing import TYPE_CHECKING, Any

from foldserve.models.errors import ExportError

if TYPE_CHECKING:
    from foldserve.models.export.pipeline import ExportResult, Progress, export_model

__all__ = ["ExportError", "ExportResult", "Progress", "export_model"]


def __getattr__(name: str) -> Any:
    # Late, since the command line imports this package to list `export`, and torch takes two seconds.
    if name in __all__:
        from foldserve.models.export import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
