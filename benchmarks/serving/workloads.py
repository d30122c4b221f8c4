"""The models, one request of each, and the answer that it must get. Models are exported once, into build/bench."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np

from foldserve.service.backends.onnxruntime.library import onnxruntime

ROOT: Final = Path(__file__).resolve().parents[2]
BENCH: Final = ROOT / "build" / "bench"
"""Everything that a benchmark makes; ignored by git."""
REPOSITORY: Final = BENCH / "repository"
TOLERANCE: Final = 1e-4
"""Largest difference of an answer from ONNX Runtime's, relative to 1 + its size: batches of other sizes add up in
another order, and JSON of float32 has 7 to 9 digits."""


@dataclass(frozen=True)
class Work:
    """One row of `row_shape` per request, as JSON or as raw float32 bytes."""

    key: str
    title: str
    model: str
    target: tuple[str, ...]
    raw: bool
    row_shape: tuple[int, ...]

    @property
    def onnx(self) -> Path:
        """The exported model."""
        return REPOSITORY / self.model / "1" / "model.onnx"

    @cached_property
    def row(self) -> np.ndarray:
        """The input: float32 (1, *row_shape). Three decimals, so that its JSON is as long as people's."""
        values = np.random.default_rng(7).standard_normal((1, *self.row_shape))
        return np.round(values, 3).astype(np.float32)

    @cached_property
    def expected(self) -> np.ndarray:
        """ONNX Runtime's answer."""
        session = onnxruntime.InferenceSession(str(self.onnx), providers=["CPUExecutionProvider"])
        (name,) = [one.name for one in session.get_inputs()]
        answer: np.ndarray = session.run(None, {name: self.row})[0]
        return answer

    def json_body(self) -> bytes:
        """{"inputs": [[...]]}."""
        rows = np.round(self.row.astype(np.float64), 3).tolist()
        return json.dumps({"inputs": rows}).encode()

    def raw_body(self) -> bytes:
        """The row's bytes."""
        return self.row.tobytes()

    def why_wrong(self, answer: np.ndarray) -> str | None:
        """What is wrong with an answer, or None."""
        flat, expected = answer.reshape(-1), self.expected.reshape(-1)
        if flat.shape != expected.shape:
            return f"{flat.size} numbers came back, expected {expected.size}"
        worst = float(np.max(np.abs(flat - expected) / (1.0 + np.abs(expected))))
        return None if worst <= TOLERANCE else f"off by {worst:.2g}, at most {TOLERANCE:g} is allowed"


MLP: Final = Work("mlp", "MLP 10→20→5, JSON", "mlp", ("mlp",), False, (10,))
RAW_MLP: Final = Work("raw", "MLP 10→20→5, raw (40 bytes)", "mlp", ("mlp",), True, (10,))
RESNET: Final = Work(
    "resnet", "small ResNet, 3x32x32 raw (12 KB)", "resnet_small", ("resnet_small",), True, (3, 32, 32)
)
LIGHT: Final = Work(
    "light",
    "light net, 3x224x224 raw (602 KB)",
    "light_net",
    ("benchmarks.serving.light_net:build", "--name", "light_net"),
    True,
    (3, 224, 224),
)
WORKS: Final = (MLP, RAW_MLP, RESNET, LIGHT)


def export_models() -> None:
    """Have every model in REPOSITORY, with one intra-op thread."""
    for work in WORKS:
        if not work.onnx.exists():
            print(f"exporting {work.model}", file=sys.stderr, flush=True)
            command = [Path(sys.executable).parent / "foldserve", "export", *work.target]
            log = BENCH / f"export-{work.model}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("wb") as output:
                subprocess.run(
                    [*command, "--repository", REPOSITORY], cwd=ROOT, check=True, stdout=output, stderr=output
                )
        write_config(REPOSITORY, work)


def repository_of(works: Sequence[Work], folder: Path, **queue: int) -> Path:
    """A repository in `folder` with only these models, as links; `queue` goes to their config.yaml."""
    for work in works:
        (folder / work.model).mkdir(parents=True, exist_ok=True)
        version = folder / work.model / "1"
        version.unlink(missing_ok=True)  # of an earlier run, whose export may be gone
        version.symlink_to(work.onnx.parent)
        write_config(folder, work, **queue)
    return folder


def write_config(repository: Path, work: Work, **queue: int) -> None:
    """The model's config.yaml: one thread, and the queue's bounds if any."""
    lines = ["session: {threads: 1}"]
    if queue:
        lines.append("queue: {" + ", ".join(f"{key}: {value}" for key, value in queue.items()) + "}")
    (repository / work.model / "config.yaml").write_text("\n".join(lines) + "\n")
