"""What an export costs: `make bench WHAT=export`, or `python -m benchmarks.export --networks conv --parameters 30`.

Each way of writing a network, in a process of its own and one after the other:

    foldserve    export_model: both files, folded, each compared with the network in float64
    torch.onnx   torch.onnx.export(dynamo=True) with dynamic rows: the ONNX file alone, nothing is compared
    trace        torch.jit.trace and save: the TorchScript file alone, rows as they were traced, nothing is compared

A child first exports a tiny network of the same layers, so that imports are counted nowhere. Then:

    seconds      of the export, from the network in memory to the files; and of the CPU, of all threads, which other
                 work on the machine disturbs less
    our own      of those of the CPU, what is not spent inside torch.export, torch.onnx, torch.jit or the opening of a
                 session of ONNX Runtime; running the network counts as ours
    peak         the most memory of the process beyond what it had before the network was made, in times the network's
                 weights; the network itself is one of them
"""

import argparse
import contextlib
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foldserve.models.export import export_model
from foldserve.models.export.process.suppress_output import suppress_output
from foldserve.models.export.process.tidying import give_back_memory
from foldserve.service.backends.onnxruntime.library import onnxruntime

WAYS = ("foldserve", "torch.onnx", "trace")
NETWORKS = ("mlp", "conv", "transformer", "deep")

ROWS = 2  # torch.export takes a size of 1 for a constant
MLP_LAYERS = 6
CONV_LAYERS = 13
TRANSFORMER_WIDTH, HEADS, LENGTH = 768, 4, 16
PICTURE = 8  # pixels on a side: weights, not activations, are what a large network's memory is compared with
DEEP_CHANNELS = 8
DEEP_NOISE = 0.003  # beside the identity: a thousand plain layers are only well-conditioned near it


@dataclass(frozen=True)
class Work:
    """One network of the table. layers: of weights. width: features or channels of each."""

    network: str
    layers: int
    width: int

    def build(self) -> tuple[nn.Module, Tensor]:
        """The network in eval mode, and an example."""
        torch.manual_seed(0)
        if self.network == "mlp":
            return _as_large(_mlp(self.layers, self.width)), torch.randn(ROWS, self.width)
        if self.network == "transformer":
            parts = (
                nn.TransformerEncoderLayer(self.width, HEADS, 4 * self.width, batch_first=True)
                for _ in range(self.layers)
            )
            return nn.Sequential(*parts).eval(), torch.randn(ROWS, LENGTH, self.width)
        layers = nn.Sequential(*(part for _ in range(self.layers) for part in _conv(self.width)))
        _near_identity(layers) if self.network == "deep" else _as_large(layers)
        return layers.eval(), torch.randn(ROWS, self.width, PICTURE, PICTURE)

    def tiny(self) -> "Work":
        """A network of the same layers that costs nothing."""
        return Work(self.network, 2, 4)


@dataclass(frozen=True)
class Cost:
    """One row's figures of one way; see the head of this file. weights_bytes: of the network."""

    seconds: float
    cpu_seconds: float
    own_seconds: float
    peak_bytes: int
    weights_bytes: int
    parameters: int
    steps: dict[str, float]

    @property
    def peak(self) -> float:
        """In times the weights."""
        return self.peak_bytes / self.weights_bytes


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the table for benchmarks/README.md. Progress goes to stderr."""
    options = _parser().parse_args(arguments)
    if options.child:
        way, network, layers, width = options.child
        print(json.dumps(asdict(measure(way, Work(network, int(layers), int(width))))))
        return 0
    works = _works(options.networks.split(","), options.parameters, options.layers)
    results = {work: {way: _in_child(way, work) for way in WAYS} for work in works}
    print(table(results))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export", description="What an export costs.")
    parser.add_argument(
        "--networks", default=",".join(NETWORKS), help=f"of {', '.join(NETWORKS)}, with commas (default: all)"
    )
    parser.add_argument(
        "--parameters",
        default=[100.0, 10.0],
        type=_floats,
        help="millions, of all but deep (default: 100,10)",
    )
    parser.add_argument(
        "--layers",
        default=[100.0, 300.0, 1000.0],
        type=_floats,
        help="conv-norm-relu, of deep (default: 100,300,1000)",
    )
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    return parser


def _floats(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


def _works(networks: Sequence[str], millions: Sequence[float], layers: Sequence[float]) -> list[Work]:
    works = []
    for network in networks:
        if network == "deep":
            works += [Work(network, int(count), DEEP_CHANNELS) for count in layers]
            continue
        if network == "transformer":
            per_layer = 12 * TRANSFORMER_WIDTH**2
            works += [
                Work(network, max(1, round(size * 1e6 / per_layer)), TRANSFORMER_WIDTH) for size in millions
            ]
            continue
        count, per_square = (MLP_LAYERS, 1) if network == "mlp" else (CONV_LAYERS, 9)
        works += [Work(network, count, round((size * 1e6 / count / per_square) ** 0.5)) for size in millions]
    return works


def _mlp(layers: int, width: int) -> nn.Module:
    parts = (
        p
        for _ in range(layers)
        for p in (nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU())
    )
    return nn.Sequential(*parts).eval()


def _conv(channels: int) -> Iterator[nn.Module]:
    yield nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    yield nn.BatchNorm2d(channels)
    yield nn.ReLU()


def _as_large(layers: nn.Module) -> nn.Module:
    """layers with weights that keep the size of the values: torch's own let them shrink until roundings are all."""
    for layer in layers.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layers


@torch.no_grad()
def _near_identity(layers: nn.Sequential) -> None:
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.dirac_(layer.weight)
            layer.weight += DEEP_NOISE * torch.randn_like(layer.weight)
        elif isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            layer.running_mean.normal_(0.0, DEEP_NOISE)


def _in_child(way: str, work: Work) -> Cost:
    print(f"{way}: {work.network}, {work.layers} layers of {work.width}", file=sys.stderr, flush=True)
    words = [way, work.network, str(work.layers), str(work.width)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.export", "--child", *words],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    cost = Cost(**json.loads(done.stdout.splitlines()[-1]))
    print(f"    {cost.seconds:.1f} s, {cost.peak:.2f} times the weights", file=sys.stderr, flush=True)
    return cost


def measure(way: str, work: Work) -> Cost:
    """Export work here, in this process."""
    write = {"foldserve": _foldserve, "torch.onnx": _torch_onnx, "trace": _trace}[way]
    with tempfile.TemporaryDirectory() as folder:
        write(*work.tiny().build(), Path(folder), "tiny")
        give_back_memory()
        before_bytes = _memory_bytes("VmRSS")
        network, example = work.build()
        tensors = [*network.parameters(), *network.buffers()]
        _forget_peak()
        with _time_in_tools() as in_tools:
            begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
            steps = write(network, example, Path(folder), "network")
            seconds, cpu_seconds = time.perf_counter() - begun_s, time.process_time() - begun_cpu_s
        return Cost(
            seconds,
            cpu_seconds,
            cpu_seconds - in_tools(),
            _memory_bytes("VmHWM") - before_bytes,
            sum(t.numel() * t.element_size() for t in tensors),
            sum(p.numel() for p in network.parameters()),
            steps,
        )


def _foldserve(network: nn.Module, example: Tensor, folder: Path, name: str) -> dict[str, float]:
    return export_model(network, (example,), folder, name=name).seconds


def _torch_onnx(network: nn.Module, example: Tensor, folder: Path, name: str) -> dict[str, float]:
    rows = torch.export.Dim.DYNAMIC
    with suppress_output(), torch.no_grad():
        program: Any = torch.onnx.export(
            network, (example,), dynamo=True, dynamic_shapes=({0: rows},), verbose=False
        )
        program.save(str(folder / f"{name}.onnx"))
    return {}


def _trace(network: nn.Module, example: Tensor, folder: Path, name: str) -> dict[str, float]:
    with suppress_output(), torch.no_grad():
        torch.jit.trace(network, (example,)).save(str(folder / f"{name}.pt"))
    return {}


@contextlib.contextmanager
def _time_in_tools() -> Iterator[Callable[[], float]]:
    """What is spent inside the tools that an export calls. Yields: the seconds of the CPU so far."""
    total_s, depth = 0.0, 0

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal total_s, depth
            depth += 1  # one tool calls another
            begun_s = time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                depth -= 1
                total_s += 0.0 if depth else time.process_time() - begun_s

        return run

    tools: tuple[tuple[Any, str], ...] = (
        (torch.export, "export"),
        (torch.export.ExportedProgram, "run_decompositions"),
        (torch.onnx, "export"),
        (torch.jit, "script"),
        (torch.jit.RecursiveScriptModule, "define"),
        (torch.jit, "save"),
        (torch.jit, "load"),
        (onnxruntime, "InferenceSession"),
    )
    kept = [(owner, name, getattr(owner, name)) for owner, name in tools]
    for owner, name, call in kept:
        setattr(owner, name, timed(call))
    try:
        yield lambda: total_s
    finally:
        for owner, name, call in kept:
            setattr(owner, name, call)


def _forget_peak() -> None:
    """Let VmHWM begin again at what is in memory now (proc(5), clear_refs)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


def _memory_bytes(field: str) -> int:
    """VmRSS or VmHWM of this process (proc(5), status)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def table(results: dict[Work, dict[str, Cost]]) -> str:
    """The results as Markdown: seconds and peak of each way, and what foldserve takes against torch.onnx."""
    ways = ", ".join(WAYS)
    heads = (
        "network",
        "parameters",
        f"seconds: {ways}",
        "of the CPU",
        "CPU, foldserve / torch.onnx",
        "of that our own",
        f"peak: {ways}",
        "longest steps of foldserve",
    )
    lines = [
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f} at the end; "
        f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, Python {platform.python_version()}. "
        "Peak in times the weights.",
        "",
        f"| {' | '.join(heads)} |",
        f"|{'---|' * len(heads)}",
    ]
    for work, costs in results.items():
        ours, plain = costs["foldserve"], costs["torch.onnx"]
        longest = sorted(ours.steps.items(), key=lambda step: -step[1])[:3]
        cells = [
            f"{work.network}, {work.layers} layers of {work.width}",
            f"{ours.parameters / 1e6:.1f} M",
            ", ".join(f"{costs[way].seconds:.1f}" for way in WAYS),
            ", ".join(f"{costs[way].cpu_seconds:.1f}" for way in WAYS),
            f"{ours.cpu_seconds / plain.cpu_seconds:.1f}",
            f"{ours.own_seconds:.1f}",
            ", ".join(f"{costs[way].peak:.1f}" for way in WAYS),
            ", ".join(f"{name} {seconds:.1f}" for name, seconds in longest),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
