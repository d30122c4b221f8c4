"""`foldserve export`: the arguments, and the progress lines.

The command joins `foldserve` through the entry-point group foldserve.commands, as `service` never imports
`models`; `python -m foldserve.models.export` is the same command. Whatever is written to stdout is the result; progress
and errors go to stderr. Exit codes: 0 exported, 2 an error that the user can fix, 130 Ctrl-C.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TextIO

from foldserve.models.export.cli.summary import table
from foldserve.models.export.process.interrupts import Interrupts
from foldserve.service.arguments import ArgumentParser, value_of
from foldserve.service.options import choice, whole_number

if TYPE_CHECKING:
    from foldserve.models.export.pipeline import ExportResult, Progress

EPILOG = """\
examples:
  foldserve export mlp --repository models-repository
  foldserve export my_package.nets:build \\
      --example x:FP32:-1x3x224x224 --weights last.ckpt
  foldserve export my_package.nets:pictures --labels labels.txt

In --example the first size is the rows, always -1, or else one
size is the word `rows`, as in x:FP32:50xrowsx40; any other -1
makes that axis dynamic. Values of an example are random; for
integer inputs give example_inputs in the factory instead, when
not every small number is valid."""


# What the extra `export` brings (pyproject.toml).
_EXTRA = frozenset({"torch", "onnx", "onnxscript", "safetensors", "onnxruntime"})


class ExportCommand:
    """The subcommand as foldserve.commands wants it: name, help, configure(parser), run(args)."""

    name: ClassVar[str] = "export"
    help: ClassVar[str] = "fold, write and verify a network as a version in a repository"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments of `export` to parser."""
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.epilog = EPILOG
        parser.add_argument(
            "target",
            metavar="TARGET",
            help="package.module:factory of yours, which returns a module or (module, example_inputs); or a network "
            "that comes with foldserve, such as resnet18",
        )
        parser.add_argument(
            "--repository",
            metavar="DIR",
            default="repository",
            help="folder of artifacts; created if missing (default: repository)",
        )
        parser.add_argument(
            "--name", metavar="N", help="the model's name in the repository (default: from TARGET)"
        )
        parser.add_argument(
            "--version",
            metavar="V",
            help="a positive integer that does not exist yet (default: the newest version + 1, or 1)",
        )
        parser.add_argument(
            "--weights",
            metavar="FILE",
            help="a .safetensors file, or one that torch.load(weights_only=True) reads: a state dict, or a training "
            "checkpoint, whose weights are found in it",
        )
        parser.add_argument(
            "--weights-key",
            metavar="KEY",
            help="which weights of a checkpoint that has several, as model or ema.module (default: the averaged ones, "
            "else those that are called as usual)",
        )
        parser.add_argument(
            "--example",
            metavar="NAME:DTYPE:SIZES",
            action="append",
            default=[],
            help="an input, as x:FP32:-1x3x224x224; once per input, named as forward's parameters, or in their "
            "order (default: the network's own example)",
        )
        parser.add_argument(
            "--labels",
            metavar="FILE",
            help="names of the output's columns: one a line, or a JSON list (default: the network's own, if any)",
        )
        parser.add_argument(
            "--rows",
            metavar="independent|together",
            type=value_of(choice("independent", "together")),
            default="independent",
            help="together: an answer belongs to all that was sent with it (norms of the batch, graphs, one number for "
            "the whole, no rows at all), and one request is served at a time (default: independent)",
        )
        parser.add_argument(
            "--max-batch-size",
            metavar="ROWS",
            type=value_of(whole_number(1)),
            help="rows of the largest batch that is served and verified (default: 32)",
        )
        parser.add_argument(
            "--opset", metavar="N", type=value_of(whole_number(1)), help="the ONNX operator set (default: 18)"
        )
        parser.add_argument(
            "--precision",
            metavar="fp32|fp16|bf16",
            type=value_of(choice("fp32", "fp16", "bf16")),
            default="fp32",
            help="of the weights and of most computing; inputs and outputs keep their types; bf16 writes the "
            "TorchScript file alone (default: fp32)",
        )
        parser.add_argument(
            "--only",
            metavar="torchscript|onnx",
            type=value_of(choice("torchscript", "onnx")),
            help="write and verify only that file (default: both, or the one that can be written)",
        )
        parser.add_argument(
            "--tolerance",
            metavar="[OUTPUT=]NUMBER",
            action="append",
            default=[],
            help="how far answers may be off, relative to the values of their column; for all outputs or for one "
            "(default: from the network's own error, at most 0.01 in fp32, 0.1 in fp16 and bf16)",
        )

        parser.add_argument(
            "--all-sizes",
            action="store_true",
            help="refuse a network that takes more sizes of a dynamic axis than its files can (default: narrow the "
            "axis, and say so)",
        )

    def run(self, args: argparse.Namespace) -> int:
        """Export, and print the table. Returns the exit code; an ExportError is printed on stderr."""
        with Interrupts() as interrupts:
            return _run(args, interrupts)


def _run(args: argparse.Namespace, interrupts: Interrupts) -> int:
    from foldserve.models.errors import ExportError

    lines = ProgressLines(sys.stderr)

    def progress(event: "Progress") -> None:
        interrupts.raise_if_came()
        lines(event)

    try:
        result = _export(args, progress)
    except BaseException as error:
        # An error behind a Ctrl-C is what a library made of it.
        if interrupts.came or isinstance(error, KeyboardInterrupt):
            print("foldserve export: stopped; nothing was written", file=sys.stderr)
            return 130
        if isinstance(error, ExportError):
            print(f"foldserve export: {error}", file=sys.stderr)
            return 2
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in _EXTRA:
            print(
                f"foldserve export: the package {error.name!r} is not installed; it comes with the extra "
                "`export`: pip install 'foldserve[export]'",
                file=sys.stderr,
            )
            return 2
        raise
    if args.only is None:
        for missing in result.report.get("not_written", ()):
            text = f"{missing['file']} was NOT written, only the other file was: {missing['reason']}"
            print(f"foldserve export: {text}", file=sys.stderr)
    print(table(result))
    return 0


class ProgressLines:
    """Shows the steps: on a terminal one line that is overwritten, elsewhere a plain line per finished step."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()

    def __call__(self, event: "Progress") -> None:
        label = f"[{event.index}/{event.total}] {event.step}"
        if self._terminal:
            self._stream.write(f"\r\x1b[2K{label} ...")
            if event.seconds is not None:
                self._stream.write(f"\r\x1b[2K{label}  {event.seconds:.1f} s" + "\n")
        elif event.seconds is not None:
            self._stream.write(f"{label}: {event.seconds:.1f} s\n")
        self._stream.flush()


def _export(args: argparse.Namespace, progress: Callable[["Progress"], None]) -> "ExportResult":
    # Here and not above: --help and other commands must not wait for torch.
    from foldserve.models.errors import BadExample
    from foldserve.models.export.artifact.labels import read_labels
    from foldserve.models.export.artifact.versions import check_name
    from foldserve.models.export.cli.example_option import examples_from
    from foldserve.models.export.network.example.arguments import arranged
    from foldserve.models.export.pipeline import export_model
    from foldserve.models.export.verify.tolerance import tolerance_from
    from foldserve.models.registry import resolve

    if args.name is not None:
        check_name(args.name)  # before a large network is built
    if args.weights_key is not None and args.weights is None:
        raise BadExample(
            "--weights-key says where in a weights file to look; give the file too: --weights FILE"
        )
    labels = read_labels(Path(args.labels)) if args.labels else None
    target = resolve(args.target, Path(args.weights) if args.weights else None, args.weights_key)
    if target.note:
        print(f"foldserve export: {target.note}", file=sys.stderr)
    name = check_name(args.name or target.name)
    inputs, axes, input_names = target.example_inputs, target.dynamic_axes, target.input_names
    if args.example:
        inputs, axes, input_names = arranged(target.module, *examples_from(args.example))
    if not inputs:
        raise BadExample(
            f"{args.target} gives no example inputs; add --example NAME:DTYPE:SIZES, for example --example "
            "x:FP32:-1x3x224x224, or let the factory return (module, example_inputs)"
        )
    return export_model(
        target.module,
        inputs,
        args.repository,
        name=name,
        version=args.version,
        dynamic_axes=axes,
        input_names=input_names,
        rows=args.rows,
        max_batch_size=args.max_batch_size,
        opset=args.opset,
        precision=args.precision,
        only=args.only,
        labels=target.labels if labels is None else labels,
        all_sizes=args.all_sizes,
        tolerance=tolerance_from(args.tolerance),
        source=target.source,
        progress=progress,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m foldserve.models.export`: the same command without the server's command line around it."""
    command = ExportCommand()
    parser = ArgumentParser(prog="python -m foldserve.models.export", description=command.help)
    command.configure(parser)
    return command.run(parser.parse_args(sys.argv[1:] if arguments is None else arguments))
