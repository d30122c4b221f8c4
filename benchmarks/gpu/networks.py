"""Which networks are measured, in which precisions; their artifacts, and how they are served.

Imports no torch: the processes that run ONNX files need none.
"""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import yaml

from benchmarks.serving.workloads import ROOT

if TYPE_CHECKING:
    import torch
    from torch import nn

SEED: Final = 0
EXPORT_ROWS: Final = 7
"""The largest batch that an export verifies: one that it tries anyway. Served are larger ones; see serving_folder."""
MOST_QUEUED_BYTES: Final = 4 * 2**30
MOST_QUEUED_ROWS: Final = 16_384


@dataclass(frozen=True)
class Subject:
    """A network with one type of bodies. key: its model's name, in fp32. target: what `foldserve export` is given."""

    key: str
    title: str
    body: str
    target: str


@dataclass(frozen=True)
class Precision:
    """How it computes. exported: as which artifact; tf32: whether the GPU may round to TF32."""

    key: str
    exported: str
    tf32: bool


SUBJECTS: Final = {
    one.key: one
    for one in (
        Subject("resnet50", "ResNet-50", "float", "resnet50"),
        Subject("resnet50_uint8", "ResNet-50", "uint8", "benchmarks.gpu.networks:resnet50_uint8"),
        Subject("efficientnet_lite0", "EfficientNet-Lite0", "float", "efficientnet_lite0"),
        Subject("efficientnet_lite0_uint8", "EfficientNet-Lite0", "uint8", "efficientnet_lite0_uint8"),
        Subject("mlp", "MLP 10→20→5", "float", "mlp"),
        Subject("resnet_small", "small ResNet", "float", "resnet_small"),
    )
}
PRECISIONS: Final = {
    one.key: one
    for one in (
        Precision("fp32", "fp32", False),
        Precision("tf32", "fp32", True),
        Precision("fp16", "fp16", False),
    )
}
ON_GPU: Final = ("resnet50_uint8", "efficientnet_lite0_uint8", "resnet50", "efficientnet_lite0")
ON_CPU: Final = ("mlp", "resnet_small")


def resnet50_uint8() -> "tuple[nn.Module, tuple[torch.Tensor, ...]]":
    """ResNet-50 that takes RGB pictures as bytes and normalises them itself: uint8 (N, 3, 224, 224) in, logits out.

    With ImageNet's usual means and deviations; the weights are random, and the same at every call.
    """
    import torch

    from foldserve.models.image_input import ImageInput
    from foldserve.models.resnet import build_50

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(SEED)
        network = ImageInput(build_50(), mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
        return network, (torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8),)


def artifact_name(subject: Subject, precision: Precision) -> str:
    """The name of the model in the repository."""
    return subject.key if precision.exported == "fp32" else f"{subject.key}_{precision.exported}"


def export_command(subject: Subject, precision: Precision, repository: Path) -> list[str]:
    """How the artifact is made."""
    command = [
        sys.executable,
        "-m",
        "foldserve.models.export",
        subject.target,
        "--repository",
        str(repository),
    ]
    command += ["--name", artifact_name(subject, precision), "--precision", precision.exported]
    return [*command, "--max-batch-size", str(EXPORT_ROWS)]


def version_folder(repository: Path, name: str) -> Path | None:
    """The newest version of a model, if there is one with an ONNX file."""
    versions = [path.parent for path in (repository / name).glob("[0-9]*/model.onnx")]
    return max(versions, key=lambda path: int(path.name), default=None)


def export(subject: Subject, precision: Precision, repository: Path, log: Path) -> None:
    """Have the artifact in the repository. Raises: RuntimeError with the end of the export's own words."""
    if version_folder(repository, artifact_name(subject, precision)) is not None:
        return
    with log.open("wb") as output:
        done = subprocess.run(
            export_command(subject, precision, repository),
            cwd=ROOT,
            stdout=output,
            stderr=output,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"the export ended with {done.returncode}: {log.read_text()[-1000:].strip()}")


def serving_folder(
    subject: Subject, precision: Precision, repository: Path, folder: Path, rows: int, on_gpu: bool
) -> Path:
    """A repository in `folder` with this model alone, as a link, and a config.yaml for batches of up to `rows`.

    Raises: RuntimeError when the model is not in `repository`.
    """
    name = artifact_name(subject, precision)
    version = version_folder(repository, name)
    if version is None:
        raise RuntimeError(f"{repository} has no model.onnx of {name}; export it: the part `export` does")
    made = folder / f"{subject.key}-{precision.key}"
    (made / name).mkdir(parents=True, exist_ok=True)
    for link in (made / name).iterdir():
        link.unlink()
    (made / name / version.name).symlink_to(version.resolve())
    # Room for every connection's request: what is refused would be asked again at once, and measured is that.
    config: dict[str, object] = {
        "max_batch_size": rows,
        "queue": {"max_rows": MOST_QUEUED_ROWS, "max_bytes": MOST_QUEUED_BYTES},
        "session": {"tf32": precision.tf32} if on_gpu else {"threads": 1},
    }
    (made / name / "config.yaml").write_text(yaml.safe_dump(config))
    return made


def chosen(keys: Sequence[str]) -> list[Subject]:
    """The subjects of these keys."""
    return [SUBJECTS[key] for key in keys]
