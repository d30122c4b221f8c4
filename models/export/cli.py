"""`foldserve export`: the arguments, the progress lines and the table at the end.

The command joins `foldserve` through the entry-point group foldserve.commands, as `service` never imports
`models`; `python -m foldserve.models.export` is the same command. Whatever is written to stdout is the result; progress
and errors go to stderr. Exit codes: 0 exported, 2 an error that the user can fix, 130 Ctrl-C.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TextIO

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
    from foldserve.models.export.example_option import examples_from
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


def table(result: "ExportResult") -> str:
    """What the export did, for people: found, folded, left with reasons, parity, sizes, time."""
    report = result.report
    fold = report["fold"]
    rows = [
        ("network", f"{report['source']}, {report['parameter_count']:,} parameters"),
        ("written", str(result.folder)),
        ("inputs", _signature(report["inputs"])),
        *(("", f"fixed: {one['name']} = {one['value']!r}") for one in report.get("fixed_inputs", ())),
        ("outputs", _signature(report["outputs"])),
        *([("rows", "together: one request is served at a time")] if report["rows"] == "together" else []),
        *(("", f"left out: {_left_out(one)}") for one in report.get("left_out", ())),
        *(("", text) for text in _moved(report)),
        *_picture(report),
        *((f"dim {name}", _dim(dim)) for name, dim in report["dims"].items()),
        *(("", f"narrowed: {one['dim']}: {one['reason']}") for one in report["narrowed"]),
        ("batch norms", f"{fold['found']} found, {fold['folded']} folded, {len(fold['left'])} left"),
        *(("", f"left: {left['where']}: {left['reason']}") for left in fold["left"]),
        ("fold, float64", _parity(report["parity"]["fold_float64"])),
        ("precision", report["precision"]),
        *(
            ("", f"weights in {word} were converted to float32")
            for word in report.get("converted_weights", ())
        ),
        *(("", f"in fp32: {kept['where']}: {kept['reason']}") for kept in report["kept_fp32"]),
        ("TorchScript", _form(report, "torchscript", "model.pt")),
        ("ONNX", _form(report, "onnx", "model.onnx")),
        *(("warning", text) for text in report.get("warnings", ())),
        *(("", note) for note in _notes(report["parity"])),
        ("memory", _memory(report["memory"])),
        ("sizes", ", ".join(f"{name} {_size(entry['size'])}" for name, entry in report["files"].items())),
        ("time", f"{sum(result.seconds.values()):.1f} s, {_slowest(result.seconds)}"),
    ]
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {text}" for label, text in rows)


def _form(report: Mapping[str, Any], form: str, file: str) -> str:
    reasons = {missing["file"]: missing["reason"] for missing in report.get("not_written", ())}
    if file in reasons:
        return f"no file: {reasons[file]}"
    opset = f", opset {report['opset']}" if form == "onnx" else ""
    return f"{_parity(report['parity'][form])}{opset}"


def _picture(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How a picture becomes the input, and what the columns of the output are called, where the network says so."""
    rows = []
    if "image" in report:
        image = report["image"]
        size = (
            "any size"
            if image["size"] is None
            else f"{image['resize']} to {image['size'][0]} x {image['size'][1]}"
        )
        parity = report["parity"]["pictures"]
        rows = [
            ("pictures", f"JPEG or PNG, {size}, {image['colour']}, {image['layout']}"),
            (
                "",
                f"decoded ones: max difference {parity['max_rel']:.1e} relative from what is declared, in float64",
            ),
        ]
    if "labels" in report:
        labels = report["labels"]
        rows.append(("labels", f"{len(labels)}: {labels[0]} ... {labels[-1]}"))
    return rows


def _notes(parity: Mapping[str, Any]) -> list[str]:
    """What the figures of the files do not say, once for each output."""
    outputs = [entry for form in parity.values() for entry in form.get("outputs", {}).items()]
    return list(dict.fromkeys(f"{name}: {figures['note']}" for name, figures in outputs if "note" in figures))


def _memory(memory: Mapping[str, int]) -> str:
    return f"weights {_size(memory['weights_bytes'])}, and {_size(memory['row_bytes'])} at most for each row of a batch"


def _signature(specs: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{s['name']} {s['datatype']} {'x'.join(map(str, s['shape']))}" for s in specs)


def _left_out(one: Mapping[str, Any]) -> str:
    value = f" = {one['value']!r}" if "value" in one else ""
    return f"{one['name']}{value}: {one['reason']}"


def _moved(report: Mapping[str, Any]) -> list[str]:
    """A line for each tensor whose rows are in another dim in the network itself."""
    return [
        f"transposed: {spec['name']} has its rows in dim {spec['rows_dim']} in the network, in dim 0 when served"
        for spec in (*report["inputs"], *report["outputs"])
        if "rows_dim" in spec
    ]


def _dim(dim: Mapping[str, Any]) -> str:
    most = "or more" if dim["max"] is None else f"to {dim['max']}"
    multiple = f", multiples of {dim['multiple_of']}" if dim["multiple_of"] > 1 else ""
    return f"{dim['min']} {most}{multiple}"


def _parity(parity: Mapping[str, Any]) -> str:
    rows = ", ".join(str(n) for n in parity["rows_tried"])
    return (
        f"max difference {parity['max_rel']:.1e} relative, tolerance {parity['tolerance']:.0e}, rows {rows}"
    )


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def _slowest(seconds: Mapping[str, float]) -> str:
    most = sorted(seconds.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{step} {took:.1f} s" for step, took in most)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m foldserve.models.export`: the same command without the server's command line around it."""
    command = ExportCommand()
    parser = ArgumentParser(prog="python -m foldserve.models.export", description=command.help)
    command.configure(parser)
    return command.run(parser.parse_args(sys.argv[1:] if arguments is None else arguments))
