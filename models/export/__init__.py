"""The export: from an nn.Module to files that a server trusts. A folder is a step, in the order of an export's life:

    process/    what an export sets in torch and in its process while it works, and puts back
 1. network/    module_copy: a deep copy in eval mode and float32; example/: the example inputs, checked and flattened,
                with the axes that vary; sampling/: fresh inputs in their image
 2. capture/    capture, graph_cleanup: one graph of ATen operators with symbolic rows, or a refusal with the fix;
                sizes/: the sizes that it answers for; tracing/: what is changed in torch meanwhile
 3.             the eager network's answers in float64, on the example and on fresh inputs: verify/reference.py
 4. fold/       batch norms into the weights around them, proved in float64; rules/: one family of operators a file
 5. precision/  fp16 or bf16 where asked for: mixed: which operators; convert: the casts between them
 6. writers/    torchscript_writer, onnx_writer: both files from that graph, or one: forms
 7. verify/     reference, parity: the fold and both files against the eager answers; layers/: and each layer of the
                files by itself; the guilty one is named by first_difference and layers/first_wrong_layer
 8. artifact/   memory: bytes of weights and of a row; manifest: manifest.json and reference.npz; versions: renamed
                into place in one step

Each imports only from those above it (tests/models/export/test_layers.py). steps.py has each step as a function of what
the ones before it made, pipeline.py their order.

    cli/        the command: its arguments, its progress, the table at the end
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
