"""Sessions without a server: ONNX Runtime as the server opens it, TorchScript, torch.compile. A program of its own:

    python -m benchmarks.gpu.in_process '{"subject": "mlp", ...}'     see Job

Prints a record for each batch size as soon as it is measured, and one for what cannot be.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks.gpu.loops import Looper, Step, Steps, loop
from benchmarks.gpu.networks import PRECISIONS, SUBJECTS, Precision, Subject
from benchmarks.gpu.records import Cell, Failure, Record, to_line
from foldserve.service.backends import Session, SessionOptions, Workload, load_session
from foldserve.service.repository.artifact import Artifact
from foldserve.service.repository.index import read_repository
from foldserve.service.repository.loading import load_model
from foldserve.service.repository.reference import read_reference

if TYPE_CHECKING:
    from benchmarks.gpu.scripted import Scripted


@dataclass(frozen=True)
class Way:
    """One way to run a network.

    opens: a key of _OPENS: how a session is made. choice: what it is told, see there. sessions: side by side.
    """

    part: str
    title: str
    opens: str
    choice: bool = True
    sessions: int = 1


WAYS: Final = {
    "ort": Way("in-process", "ONNX Runtime, CUDA graphs", "onnx", True),
    "ort-2": Way("in-process", "ONNX Runtime, CUDA graphs, 2 sessions", "onnx", True, 2),
    "ort-plain": Way("in-process", "ONNX Runtime, no graphs", "onnx", False),
    "ort-plain-2": Way("in-process", "ONNX Runtime, no graphs, 2 sessions", "onnx", False, 2),
    "script": Way("torchscript", "TorchScript, folded", "script", True),
    "script-unfolded": Way("torchscript", "TorchScript, unfolded", "script", False),
    "plain-script": Way("torchscript", "TorchScript not frozen, folded", "plain script", True),
    "plain-script-unfolded": Way("torchscript", "TorchScript not frozen, unfolded", "plain script", False),
    "compile": Way("compile", "torch.compile", "compile"),
}
"""`choice`: with CUDA graphs; folded. The ways with the same `opens` and `choice` follow each other."""


@dataclass(frozen=True)
class Job:
    """What one process measures.

    device: "cpu" or "cuda:N"; uuid: of that GPU, "" = none. seconds: of one batch size.
    repository: with the subject's model alone, for ONNX Runtime; "" where no way needs it.
    backend, mode: torch.compile's; "" = its default mode.
    """

    subject: str
    precision: str
    ways: Sequence[str]
    batches: Sequence[int]
    device: str
    uuid: str = ""
    seconds: float = 2.0
    repository: str = ""
    backend: str = "inductor"
    mode: str = ""

    def to_text(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))


@dataclass
class Opened:
    """A looper and what its session says of itself."""

    looper: Looper
    notes: list[str] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    (text,) = sys.argv[1:] if arguments is None else arguments
    for record in measure(Job(**json.loads(text))):
        print(to_line(record), flush=True)


def measure(job: Job) -> Iterator[Record]:
    """Every way of the job at every batch size; what fails is told and costs no other."""
    with tempfile.TemporaryDirectory() as folder:
        network = _Network(job, Path(folder))
        opened: list[Opened] = []
        before: Way | None = None
        for key in job.ways:
            way = WAYS[key]
            if before is None or (before.opens, before.choice) != (way.opens, way.choice):
                _end(opened)
            before = way
            try:
                while len(opened) < way.sessions:
                    opened.append(_open(network, way))
            except Exception as error:
                yield Failure(_what(job, key), f"{type(error).__name__}: {error}")
                continue
            yield from _every_batch(job, key, opened[: way.sessions])
        _end(opened)


def _every_batch(job: Job, key: str, opened: Sequence[Opened]) -> Iterator[Record]:
    for batch in job.batches:
        try:
            seen = loop([one.looper for one in opened], batch, job.seconds, job.uuid)
        except Exception as error:
            yield Failure(f"{_what(job, key)}, {batch} rows", f"{type(error).__name__}: {error}")
            continue
        yield Cell(
            model=job.subject,
            precision=job.precision,
            way=key,
            batch=batch,
            sessions=len(opened),
            rows_s=seen.rows_s,
            p50_ms=seen.p50_ms,
            p99_ms=seen.p99_ms,
            device=seen.device,
            cpu_s=seen.cpu_s,
            notes=opened[0].notes,
        )


def _what(job: Job, key: str) -> str:
    return f"{job.subject}, {job.precision}, {WAYS[key].title}"


def _open(network: "_Network", way: Way) -> Opened:
    notes: list[str] = []
    return Opened(Looper(partial(_OPENS[way.opens], network, way.choice, notes)), notes)


def _end(opened: list[Opened]) -> None:
    for one in opened:
        one.looper.end()
    opened.clear()


class _Network:
    """A job's network, and what several ways of it share."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job = job
        self.subject: Subject = SUBJECTS[job.subject]
        self.precision: Precision = PRECISIONS[job.precision]
        self.buckets = tuple(sorted(job.batches))
        self._folder = folder
        self._scripted: Scripted | None = None

    def scripted(self) -> "Scripted":
        """The TorchScript files; written at the first call."""
        from benchmarks.gpu.scripted import write

        if self._scripted is None:
            self._scripted = write(self.subject, self.precision, self._folder)
        return self._scripted


def _onnx(network: _Network, graphs: bool, notes: list[str]) -> Steps:
    """Loaded as a worker loads it: checked against its reference, every batch size prepared."""
    job = network.job
    (entry,) = read_repository(Path(job.repository))
    config = replace(entry.config, batch_buckets=network.buckets)
    artifact: Artifact = replace(entry.artifacts[-1], max_batch_size=network.buckets[-1])
    options = replace(config.session, cuda_graphs=graphs)
    session = load_model(artifact, config, job.device, options)
    notes += session.notes
    reference = read_reference(artifact)
    rows = {spec.name: reference[f"input.{spec.name}"] for spec in artifact.signature.inputs}
    return partial(_session_step, session, rows)


def _script(network: _Network, folded: bool, notes: list[str]) -> Steps:
    """Loaded as a worker loads it; on a GPU it is frozen, which folds the norms of plain pairs once more."""
    files, job = network.scripted(), network.job
    session = load_session(
        "torchscript",
        files.folded if folded else files.unfolded,
        files.signature,
        job.device,
        SessionOptions(threads=1, tf32=network.precision.tf32),
        Workload(network.buckets),
    )
    notes += session.notes
    return partial(_session_step, session, files.rows)


def _plain_script(network: _Network, folded: bool, notes: list[str]) -> Steps:
    """The file as it is: what the fold is worth by itself."""
    from foldserve.models.export.writers.torchscript_writer import load_torchscript

    _set_tf32(network.precision.tf32)
    files = network.scripted()
    module = load_torchscript(files.folded if folded else files.unfolded).to(network.job.device)
    return partial(_torch_step, module, files.rows, network.job.device)


def _compiled(network: _Network, _: bool, notes: list[str]) -> Steps:
    """The network itself, unfolded, as torch compiles it for each batch size; channels last, half where fp16."""
    import torch

    from foldserve.models import registry

    job = network.job
    _set_tf32(network.precision.tf32)
    target = registry.resolve(network.subject.target)
    module = target.module.eval().to(job.device)
    if network.precision.exported == "fp16":
        module = _in_half(module)
    if any(one.ndim == 4 for one in module.parameters()):
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    settings: dict[str, Any] = {"mode": job.mode} if job.mode else {}
    compiled = torch.compile(module, backend=job.backend, dynamic=False, **settings)
    notes.append(f"torch.compile, {job.backend}{', ' + job.mode if job.mode else ''}")
    rows = {str(i): tensor.numpy() for i, tensor in enumerate(target.example_inputs)}
    return partial(_torch_step, compiled, rows, job.device)


def _in_half(network: Any) -> Any:
    """The network in fp16, floats in and out as before."""
    import torch

    class InHalf(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network.half()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.network(x.half() if x.is_floating_point() else x)
            return y.float()

    return InHalf()


def _set_tf32(allowed: bool) -> None:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


_OPENS: Final[dict[str, Callable[[_Network, bool, list[str]], Steps]]] = {
    "onnx": _onnx,
    "script": _script,
    "plain script": _plain_script,
    "compile": _compiled,
}
"""How a session is made: of a network, with the way's choice; notes are added to the list. Returns its steps."""


def _session_step(session: Session, rows: Mapping[str, np.ndarray], batch: int) -> Step:
    """The rows lie where the session wants them before the clock runs."""
    inputs = {name: repeated(array, batch) for name, array in rows.items()}
    buffers = session.host_buffers(batch)
    if buffers is not None:
        for name, array in inputs.items():
            buffers[name][:] = array
        inputs = dict(buffers)
    return partial(session.run, inputs)


def _torch_step(module: Any, rows: Mapping[str, np.ndarray], device: str, batch: int) -> Step:
    """Page-locked rows to the device, a run, the answer back, one wait."""
    import torch

    inputs = [torch.from_numpy(repeated(array, batch)) for array in rows.values()]
    on_gpu = device != "cpu"
    if on_gpu:
        inputs = [tensor.pin_memory() for tensor in inputs]
    answers: list[torch.Tensor] = []

    @torch.inference_mode()
    def step() -> None:
        result = module(*(tensor.to(device, non_blocking=True) for tensor in inputs))
        if not on_gpu:
            return
        outputs = [result] if isinstance(result, torch.Tensor) else list(result)
        if not answers:
            answers.extend(torch.empty(one.shape, dtype=one.dtype, pin_memory=True) for one in outputs)
        for answer, output in zip(answers, outputs, strict=True):
            answer.copy_(output, non_blocking=True)
        torch.cuda.current_stream(device).synchronize()

    return step


def repeated(array: np.ndarray, batch: int) -> np.ndarray:
    """The array's rows over and over, up to `batch` of them."""
    return np.ascontiguousarray(array[np.arange(batch) % len(array)])


if __name__ == "__main__":
    main()
