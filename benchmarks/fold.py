"""Folded against unfolded, per network: `make bench`, or `python -m benchmarks.fold --networks digits,unet`.

Folded are the files that `foldserve export` writes. Unfolded are files of the same captured graph, written by
the same writers, with every batch norm left in it. Both run in turn, in one process, on one thread. Reported
is the median of the ratios of neighbouring samples, which other work on the machine disturbs least, for

    TorchScript     as the server runs it: torch.jit.load, no freezing
    ONNX as it is   ONNX Runtime with its graph optimisations off: what the fold itself is worth
    ONNX served     ONNX Runtime as the server runs it: its own optimiser folds a norm right behind a
                    convolution while it loads the unfolded file, so only the rest of the fold can show here

The unfolded ONNX file has its constants folded but torch.onnx's rewrite rules left out: they fold those same
easy pairs. Networks without batch norms are there as the control; their ratios are 1 but for noise.
"""

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxscript.optimizer
import torch
from torch import Tensor

from foldserve.models import registry
from foldserve.models.errors import MissingExtra
from foldserve.models.export import export_model
from foldserve.models.export.capture.capture import CapturedGraph, capture
from foldserve.models.export.network.example.example import read_example
from foldserve.models.export.network.module_copy import eval_copy
from foldserve.models.export.process.suppress_output import suppress_output
from foldserve.models.export.writers.onnx_writer import DEFAULT_OPSET, save_onnx
from foldserve.models.export.writers.torchscript_writer import (
    load_torchscript,
    save_torchscript,
    to_torchscript,
)
from foldserve.models.recurrent import symbolic_length
from foldserve.service.backends.onnxruntime.library import onnxruntime

WARM_UPS = 3  # TorchScript's executor profiles the first runs of a shape and compiles at the second or third
LEAST_ROUNDS = 5
LOADS = 9
SHORTEST_SAMPLE_S = 0.002  # shorter runs are repeated inside one sample, so that the clock does not show

TORCHSCRIPT, ONNX_AS_IS, ONNX_SERVED = COLUMNS = ("TorchScript", "ONNX as it is", "ONNX served")

Inputs = tuple[Tensor, ...]
Run = Callable[[Inputs], object]
Load = Callable[[], Run]


@dataclass(frozen=True)
class Variant:
    """One form of the network on disk."""

    torchscript: Path
    onnx: Path

    def loaders(self) -> dict[str, Load]:
        """How each column of the table loads this variant."""
        everything = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        nothing = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return {
            TORCHSCRIPT: lambda: _torchscript_run(self.torchscript),
            ONNX_AS_IS: lambda: _onnx_run(self.onnx, nothing),
            ONNX_SERVED: lambda: _onnx_run(self.onnx, everything),
        }


@dataclass(frozen=True)
class Pair:
    """Unfolded / folded, the median ratio: above 1, the fold pays; and the folded one's median in seconds."""

    ratio: float
    folded_s: float


@dataclass(frozen=True)
class Result:
    """All figures of one network.

    folded, found: batch norms. times: (column, batch) -> Pair; loads: column -> Pair; sizes: file -> bytes of
    the unfolded and of the folded one.
    """

    network: str
    folded: int
    found: int
    times: dict[tuple[str, int], Pair]
    loads: dict[str, Pair]
    sizes: dict[str, tuple[int, int]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the table for benchmarks/README.md. Progress goes to stderr."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    results = []
    for network in options.networks.split(","):
        try:
            results.append(measure(network, options.batches, options.seconds))
        except MissingExtra as error:
            print(f"{network}: left out: {error}", file=sys.stderr)
    print(table(results, options.batches))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fold", description="Folded against unfolded.")
    names = ",".join(name for name in registry.available() if not name.endswith("_uint8"))
    parser.add_argument("--networks", default=names, help="names of models/, with commas (default: all)")
    parser.add_argument(
        "--batches", default=[1, 8, 32], type=_numbers, help="rows per batch (default: 1,8,32)"
    )
    parser.add_argument("--seconds", default=2.0, type=float, help="least time per comparison (default: 2)")
    return parser


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def measure(network: str, batches: Sequence[int], seconds: float) -> Result:
    """Export both variants of a network of models/ and compare them."""
    with tempfile.TemporaryDirectory() as folder:
        print(f"{network}: exporting", file=sys.stderr, flush=True)
        target = registry.resolve(network)
        folded, counts = write_folded(target, Path(folder))
        captured = capture_of(target)
        unfolded = write_unfolded(captured, Path(folder))
        loaders = {name: (load, folded.loaders()[name]) for name, load in unfolded.loaders().items()}
        times = {}
        for name, (load_unfolded, load_folded) in loaders.items():
            runs = load_unfolded(), load_folded()
            for batch in batches:
                pair = compare(*runs, rows(captured.example_inputs, batch), seconds)
                times[name, batch] = pair
                print(f"{network}: {name}, {batch} rows: {pair.ratio:.2f}", file=sys.stderr, flush=True)
        loads = {name: compare_loads(*both) for name, both in loaders.items()}
        sizes = {
            "model.pt": (unfolded.torchscript.stat().st_size, folded.torchscript.stat().st_size),
            "model.onnx": (unfolded.onnx.stat().st_size, folded.onnx.stat().st_size),
        }
    return Result(network, counts["folded"], counts["found"], times, loads, sizes)


def write_folded(target: registry.Target, folder: Path) -> tuple[Variant, dict[str, Any]]:
    """What foldserve exports, and the manifest's counts of the fold."""
    result = export_model(
        target.module,
        target.example_inputs,
        folder,
        name=target.name,
        dynamic_axes=target.dynamic_axes,
        input_names=target.input_names,
    )
    return Variant(result.torchscript_path, result.onnx_path), result.report["fold"]


def capture_of(target: registry.Target) -> CapturedGraph:
    """The graph that the export starts from."""
    example = read_example(target.module, target.example_inputs, target.dynamic_axes, target.input_names)
    return capture(eval_copy(target.module), example)


def write_unfolded(captured: CapturedGraph, folder: Path) -> Variant:
    """The captured graph with every batch norm in it."""
    variant = Variant(folder / "unfolded.pt", folder / "unfolded.onnx")
    save_torchscript(to_torchscript(captured.graph_module), variant.torchscript)
    with suppress_output(), torch.no_grad(), symbolic_length():
        program: Any = torch.onnx.export(
            captured.graph_module,
            captured.example_inputs,
            dynamic_shapes=captured.dynamic_shapes,
            input_names=list(captured.input_names),
            output_names=list(captured.output_names),
            opset_version=DEFAULT_OPSET,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
        model: onnx.ModelProto = program.model_proto
        # Else convolutions have computed biases, and ONNX Runtime cannot fold what it folds elsewhere.
        onnxscript.optimizer.fold_constants(model)
        onnxscript.optimizer.remove_unused_nodes(model)
    graph = model.graph
    for item in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del item.metadata_props[:]  # stack traces: the export leaves them out, and sizes are compared
    save_onnx(model, variant.onnx)
    return variant


def rows(example: Inputs, batch: int) -> Inputs:
    """The example's rows over and over, up to batch of them."""
    return tuple(torch.cat([one] * -(-batch // one.shape[0]))[:batch].contiguous() for one in example)


def _torchscript_run(path: Path) -> Run:
    module = load_torchscript(path)

    @torch.inference_mode()
    def run(inputs: Inputs) -> object:
        return module(*inputs)

    return run


def _onnx_run(path: Path, level: onnxruntime.GraphOptimizationLevel) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return lambda inputs: session.run(None, {n: t.numpy() for n, t in zip(names, inputs, strict=True)})


def compare(unfolded: Run, folded: Run, inputs: Inputs, seconds: float) -> Pair:
    """Run both in turn for at least so many seconds, and at least LEAST_ROUNDS times."""
    repeats = 1
    for run in (unfolded, folded):
        took_s = min(_timed(lambda run=run: run(inputs)) for _ in range(WARM_UPS))
        repeats = max(repeats, round(SHORTEST_SAMPLE_S / took_s))

    def sampler(run: Run) -> Callable[[], object]:
        return lambda: [run(inputs) for _ in range(repeats)]

    end_s = time.perf_counter() + seconds
    pair = _in_turn(
        sampler(unfolded),
        sampler(folded),
        lambda rounds: rounds < LEAST_ROUNDS or time.perf_counter() < end_s,
    )
    return Pair(pair.ratio, pair.folded_s / repeats)


def compare_loads(unfolded: Load, folded: Load) -> Pair:
    """Load both in turn, from files that the page cache holds."""
    return _in_turn(unfolded, folded, lambda rounds: rounds < LOADS)


def _in_turn(
    unfolded: Callable[[], object], folded: Callable[[], object], again: Callable[[int], bool]
) -> Pair:
    """A B, then B A, and so on: warm caches or a clock that slows down shall favour neither."""
    ratios: list[float] = []
    folded_s: list[float] = []
    while again(len(ratios)):
        if len(ratios) % 2 == 0:
            first_s, second_s = _timed(unfolded), _timed(folded)
        else:
            second_s, first_s = _timed(folded), _timed(unfolded)
        ratios.append(first_s / second_s)
        folded_s.append(second_s)
    return Pair(statistics.median(ratios), statistics.median(folded_s))


def _timed(action: Callable[[], object]) -> float:
    begun_s = time.perf_counter()
    action()
    return time.perf_counter() - begun_s


def table(results: Sequence[Result], batches: Sequence[int]) -> str:
    """The results as Markdown: ratios unfolded / folded, then the folded variant's own figures."""
    shown = ", ".join(str(batch) for batch in batches)
    heads = " | ".join(f"{name}, {shown} rows" for name in COLUMNS)
    lines = [
        f"{_processor()}, one thread; torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, "
        f"Python {platform.python_version()}. Ratios unfolded / folded: above 1 is a gain.",
        "",
        f"| network | norms folded | {heads} | loading: pt, onnx | size: pt, onnx |",
        "|---|---|---|---|---|---|---|",
        *(_ratio_line(one, batches) for one in results),
        "",
        f"The folded variant itself: ms per batch of {shown} rows, ms to load, KiB.",
        "",
        f"| network | {TORCHSCRIPT} | {ONNX_SERVED} | loading: pt, onnx | size: pt, onnx |",
        "|---|---|---|---|---|",
        *(_own_line(one, batches) for one in results),
    ]
    return "\n".join(lines)


def _ratio_line(one: Result, batches: Sequence[int]) -> str:
    cells = [f"{one.folded} of {one.found}"]
    cells += [_joined(f"{one.times[name, batch].ratio:.2f}" for batch in batches) for name in COLUMNS]
    cells.append(_joined(f"{one.loads[name].ratio:.2f}" for name in (TORCHSCRIPT, ONNX_SERVED)))
    cells.append(_joined(f"{unfolded / folded:.3f}" for unfolded, folded in one.sizes.values()))
    return f"| {one.network} | {' | '.join(cells)} |"


def _own_line(one: Result, batches: Sequence[int]) -> str:
    names = (TORCHSCRIPT, ONNX_SERVED)
    cells = [_joined(f"{one.times[name, batch].folded_s * 1e3:.3g}" for batch in batches) for name in names]
    cells.append(_joined(f"{one.loads[name].folded_s * 1e3:.3g}" for name in names))
    cells.append(_joined(f"{folded / 1024:.0f}" for _, folded in one.sizes.values()))
    return f"| {one.network} | {' | '.join(cells)} |"


def _joined(words: Iterator[str]) -> str:
    return ", ".join(words)


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
