"""What a GPU can do, and how much of it a served network reaches: one run, one set of tables.

    python -m benchmarks.gpu                                                  everything; takes hours
    python -m benchmarks.gpu --parts in-process,served --networks resnet50_uint8 --precisions fp16 --batches 1,128
    python -m benchmarks.gpu --report FIRST.jsonl SECOND.jsonl                the tables of earlier runs
    python -m benchmarks.gpu --device cpu                                     small networks, to try the code itself

Parts, each independent of the others, in this order:

    export        the artifacts that --repository lacks
    in-process    ONNX Runtime as the server opens it, with CUDA graphs and without: the ceiling
    served        foldserve with so many API servers, raw bodies of one row, from a load generator in C
    kill          the same, and its worker is killed with kill -9 under load
    torchscript   TorchScript folded and unfolded
    compile       torch.compile

Each figure is a line in results.jsonl under --out as soon as it is measured; a run that is cut off loses the one under
way, and --resume goes on from there. Progress goes to stderr, the tables to stdout and to report.md under --out.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.gpu import networks, records, subprocesses
from benchmarks.gpu.in_process import WAYS, Job
from benchmarks.gpu.networks import ON_CPU, ON_GPU, PRECISIONS, SUBJECTS, Precision, Subject
from benchmarks.gpu.records import Begun, Failure, Record
from benchmarks.gpu.report import in_short, report
from benchmarks.gpu.served import Model, Place, kill_workers, measure
from benchmarks.serving import closed_loop, process_tree
from benchmarks.serving.runs import tell
from benchmarks.serving.workloads import BENCH
from foldserve.service.backends.devices import choose_devices
from foldserve.service.errors import ConfigError

PARTS: Final = ("export", "in-process", "served", "kill", "torchscript", "compile")
RESULTS: Final = "results.jsonl"
KILL_CONNECTIONS: Final = 64


@dataclass(frozen=True)
class Run:
    """What is measured, and where."""

    options: argparse.Namespace
    device: str
    uuid: str
    generator: Path | None

    @property
    def on_gpu(self) -> bool:
        """Whether it is on a GPU."""
        return self.device != "cpu"

    @property
    def out(self) -> Path:
        """The folder of the results."""
        folder: Path = self.options.out
        return folder

    def place(self) -> Place:
        """For the parts that load a server."""
        assert self.generator is not None  # made when one of those parts was asked for
        options = self.options
        return Place(self.device, self.uuid, self.generator, options.generator_threads, options.limit)

    def repository(self, subject: Subject, precision: Precision) -> Path:
        """A repository with that model alone. Raises: RuntimeError when there is no artifact of it."""
        options, rows = self.options, max(self.options.batches)
        folder = self.out / "repositories"
        return networks.serving_folder(subject, precision, options.repository, folder, rows, self.on_gpu)


@dataclass(frozen=True)
class Task:
    """Some figures of one network in one precision. what: for people. run: gives the records as they come."""

    what: str
    run: Callable[[], Iterator[Record]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print, or print what was measured."""
    options = parser().parse_args(arguments)
    if options.report:
        try:
            print(report(records.read(options.report)))
        except (OSError, ValueError) as error:
            return _cannot(str(error))
        return 0
    try:
        run = prepared(options)
    except ConfigError as error:
        return _cannot(str(error))
    # Told to end, as by `timeout`: no server may be left behind, and ending one is what `finally` does.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    results = run.out / RESULTS
    records.mend(results)
    for task in tasks(run):
        tell(task.what)
        records.append(results, Begun(task.what))
        for record in _failures_told(task):
            records.append(results, record)
            tell(f"    {in_short(record)}")
    text = report(records.read([results]))
    (run.out / "report.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


def _cannot(why: str) -> int:
    print(f"benchmarks.gpu: {why}", file=sys.stderr)
    return 2


def prepared(options: argparse.Namespace) -> Run:
    """The device, the folder, the load generator. Raises: ConfigError without the device."""
    devices = choose_devices(options.device)
    device = devices.names[0]
    on_gpu = device != "cpu"
    options.networks = options.networks or list(ON_GPU if on_gpu else ON_CPU)
    options.precisions = options.precisions or (list(PRECISIONS) if on_gpu else ["fp32"])
    for folder in (options.out / "logs", options.repository):
        folder.mkdir(parents=True, exist_ok=True)
    generator = options.generator
    if generator is None and {"served", "kill"} & set(options.parts):
        generator = closed_loop.build()
    process_tree.adopt_orphans()
    return Run(options, device, devices.uuids.get(device, ""), generator and generator.resolve())


def tasks(run: Run) -> Iterator[Task]:
    """What there is to do, in order."""
    options = run.options
    log = run.out / "logs" / "machine.log"
    yield Task(
        "machine",
        partial(subprocesses.records, "machine", "benchmarks.gpu.machine", run.uuid, log, options.limit),
    )
    making: dict[str, Callable[[Run, Subject, Precision], Iterator[Record]]] = {
        "export": _export,
        "in-process": partial(_in_process, "in-process"),
        "served": _served,
        "kill": _kill,
        "torchscript": partial(_in_process, "torchscript"),
        "compile": partial(_in_process, "compile"),
    }
    for part in (part for part in PARTS if part in options.parts):
        for subject in networks.chosen(options.networks):
            for precision in (PRECISIONS[key] for key in options.precisions):
                what = f"{part}: {subject.key}, {precision.key}"
                yield Task(what, partial(making[part], run, subject, precision))


def _failures_told(task: Task) -> Iterator[Record]:
    """The records of a task, and one of the failure that ends it: the next shall not be lost."""
    try:
        for record in task.run():
            yield replace(record, task=task.what) if isinstance(record, Failure) else record
    except Exception as error:  # whatever it is
        yield Failure(task.what, f"{type(error).__name__}: {error}", task.what)


def _export(run: Run, subject: Subject, precision: Precision) -> Iterator[Record]:
    log = run.out / "logs" / f"export-{subject.key}-{precision.exported}.log"
    networks.export(subject, precision, run.options.repository, log)
    yield from ()


def _in_process(part: str, run: Run, subject: Subject, precision: Precision) -> Iterator[Record]:
    options, done = run.options, _done(run)
    missing = [
        (way, batch)
        for way in options.ways
        for batch in options.batches
        if WAYS[way].part == part and ("cell", subject.key, precision.key, way, batch) not in done
    ]
    if not missing:
        return
    job = Job(
        subject=subject.key,
        precision=precision.key,
        ways=list(dict.fromkeys(way for way, _ in missing)),
        batches=sorted({batch for _, batch in missing}),
        device=run.device,
        uuid=run.uuid,
        seconds=options.seconds,
        repository=str(run.repository(subject, precision)) if part == "in-process" else "",
        backend=options.compile_backend,
        mode=options.compile_mode,
    )
    log = run.out / "logs" / f"{part}-{subject.key}-{precision.key}.log"
    what = f"{part}: {subject.key}, {precision.key}"
    yield from subprocesses.records(what, "benchmarks.gpu.in_process", job.to_text(), log, options.limit)


def _served(run: Run, subject: Subject, precision: Precision) -> Iterator[Record]:
    options = run.options
    model = Model(subject.key, precision.key, run.repository(subject, precision))
    done = _done(run)
    for number, api_servers in enumerate(options.api_servers):
        connections = [
            count
            for count in options.connections
            # One connection meets one API server, whoever the others are.
            if (count > 1 or number == 0)
            and ("served", subject.key, precision.key, api_servers, count) not in done
        ]
        if not connections:
            continue
        try:
            yield from measure(model, api_servers, connections, options.seconds, run.place())
        except (RuntimeError, OSError) as error:
            yield Failure(f"served: {subject.key}, {precision.key}, {api_servers} API servers", str(error))


def _kill(run: Run, subject: Subject, precision: Precision) -> Iterator[Record]:
    options = run.options
    if ("killed", subject.key, precision.key) not in _done(run):
        model = Model(subject.key, precision.key, run.repository(subject, precision))
        api_servers = min(2, max(options.api_servers))
        yield kill_workers(
            model, api_servers, KILL_CONNECTIONS, options.kill_seconds, run.place(), options.kills
        )


def _done(run: Run) -> set[tuple[object, ...]]:
    """What need not be measured again."""
    results = run.out / RESULTS
    return {one.key for one in records.read([results])} if run.options.resume else set()


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--device", default="cuda:0", help="cuda:N, or cpu to try the code (default: cuda:0)")
    add("--parts", type=_words(PARTS), default=list(PARTS), help="with commas (default: all)")
    add(
        "--networks",
        type=_words(SUBJECTS),
        default=[],
        help=f"default: {','.join(ON_GPU)}; on cpu {','.join(ON_CPU)}",
    )
    add("--precisions", type=_words(PRECISIONS), default=[], help="default: fp32,tf32,fp16; on cpu fp32")
    add(
        "--batches",
        type=_numbers,
        default=[1, 8, 32, 128],
        help="rows without a server (default: 1,8,32,128)",
    )
    add("--ways", type=_words(WAYS), default=list(WAYS), help=f"of {', '.join(WAYS)} (default: all)")
    add("--seconds", type=float, default=2.0, help="of one figure (default: 2)")
    add("--api-servers", type=_numbers, default=[1, 2, 4, 8], help="default: 1,2,4,8")
    add("--connections", type=_numbers, default=[1, 64, 512], help="to a server (default: 1,64,512)")
    add("--kills", type=int, default=3, help="of the worker (default: 3)")
    add("--kill-seconds", type=float, default=10.0, help="of load around each kill (default: 10)")
    add("--repository", type=Path, default=BENCH / "gpu-repository", help="artifacts; `export` adds to it")
    add("--out", type=Path, default=BENCH / "gpu", help="folder of the results (default: build/bench/gpu)")
    add("--resume", action="store_true", help="do not measure again what --out holds already")
    add("--generator", type=Path, help="closed_loop, compiled beforehand (default: it is compiled)")
    threads = min(8, max(1, (os.cpu_count() or 1) // 4))
    add(
        "--generator-threads",
        type=int,
        default=threads,
        help=f"of the load generator (default here: {threads})",
    )
    add(
        "--limit",
        type=float,
        default=240.0,
        help="seconds for one process: sessions to loop, a server to be ready",
    )
    add("--compile-backend", default="inductor", help="torch.compile's (default: inductor)")
    add(
        "--compile-mode", default="", help="torch.compile's: reduce-overhead (CUDA graphs), max-autotune, ..."
    )
    add(
        "--report",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="measure nothing, print the tables of these files",
    )
    return result


def _words(known: Collection[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        words = [word for word in text.split(",") if word]
        unknown = [word for word in words if word not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: expected some of {', '.join(known)}")
        return words

    return parse


def _numbers(text: str) -> list[int]:
    numbers = [int(word) for word in text.split(",")]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected whole numbers from 1, with commas")
    return numbers


if __name__ == "__main__":
    sys.exit(main())
