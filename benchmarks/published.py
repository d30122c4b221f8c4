"""How many batch norms of published networks are folded, and how exact the fold is.

    python benchmarks/published.py [NAME ...]        all of them, or those whose name starts with one of NAME
    python benchmarks/published.py --packages        another question: how many published classes are exported right

Needs torchvision, timm or transformers beside torch; what is not installed is skipped and said so. No weights
are downloaded: every norm gets random statistics, which a wrong fold cannot survive (fresh ones, mean 0 and
variance 1, hide most mistakes). Each network is captured in float64 with a dynamic number of rows, folded,
and compared with itself at 1, 2 and 3 rows. Columns: batch norm calls found, left, largest difference
relative to the largest output, seconds for the capture and for the fold, and why the first of those left is
left. docs/folding.md shows the table.

--packages installs pinned packages into build/published (benchmarks/packages/install.py), exports classes of theirs
from small configurations with random weights, and compares the files with the networks. Whatever is not right is
refused with a reason, or a fault of ours, of which one makes the exit code 1. Nothing is downloaded but the packages
themselves: connections are refused once they are there. benchmarks/README.md shows the table.
"""

import argparse
import importlib.util
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, export

from foldserve.models.export.fold import FoldReport, fold_batch_norms

Build = Callable[[], nn.Module]
_PICTURE_TO_LABEL = (
    3,
    65,
    65,
)  # the size of a row for segmentation networks: small, but larger than their dilations


@dataclass(frozen=True)
class Network:
    """A published network: where it comes from, how to build it without weights, and the size of one row."""

    package: str
    name: str
    build: Build
    row: tuple[int, ...] = (3, 224, 224)


def _torchvision(name: str, row: tuple[int, ...] = (3, 224, 224)) -> Network:
    def build() -> nn.Module:
        import torchvision.models

        extra = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
        if row == _PICTURE_TO_LABEL:  # a segmentation network, whose backbone would be downloaded
            extra = {"weights_backbone": None}
        return torchvision.models.get_model(name, weights=None, **extra)

    return Network("torchvision", name, build, row)


def _timm(name: str, row: tuple[int, ...] = (3, 224, 224)) -> Network:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False)

    return Network("timm", name, build, row)


def _transformers(name: str, config: str, model: str, row: tuple[int, ...] = (3, 224, 224)) -> Network:
    def build() -> nn.Module:
        import transformers

        return getattr(transformers, model)(getattr(transformers, config)())

    return Network("transformers", name, build, row)


NETWORKS = (
    _torchvision("resnet18"),
    _torchvision("resnet50"),
    _torchvision("wide_resnet50_2"),
    _torchvision("resnext50_32x4d"),
    _torchvision("densenet121"),
    _torchvision("vgg11_bn"),
    _torchvision("googlenet"),
    _torchvision("inception_v3", (3, 299, 299)),
    _torchvision("mobilenet_v2"),
    _torchvision("mobilenet_v3_large"),
    _torchvision("mnasnet1_0"),
    _torchvision("shufflenet_v2_x1_0"),
    _torchvision("efficientnet_b0"),
    _torchvision("efficientnet_v2_s"),
    _torchvision("regnet_y_400mf"),
    _torchvision("deeplabv3_resnet50", _PICTURE_TO_LABEL),
    _torchvision("fcn_resnet50", _PICTURE_TO_LABEL),
    _torchvision("lraspp_mobilenet_v3_large", _PICTURE_TO_LABEL),
    _timm("repvgg_a0"),
    _timm("mobileone_s0"),
    _timm("fastvit_t8", (3, 256, 256)),
    _timm("levit_128s"),
    _timm("repvit_m1"),
    _timm("efficientformer_l1"),
    _timm("efficientformerv2_s0"),
    _timm("mixnet_s"),
    _timm("nasnetalarge", (3, 331, 331)),
    _timm("inception_resnet_v2", (3, 299, 299)),
    _timm("inception_v4", (3, 299, 299)),
    _timm("xception41", (3, 299, 299)),
    _timm("nf_resnet50"),
    _timm("resnest14d"),
    _timm("skresnet18"),
    _timm("res2net50_26w_4s"),
    _timm("dla34"),
    _timm("hrnet_w18_small"),
    _timm("cspdarknet53"),
    _timm("cspresnet50"),
    _timm("dpn68"),
    _timm("selecsls42b"),
    _timm("vovnet39a"),
    _timm("ese_vovnet19b_dw"),
    _timm("ghostnet_100"),
    _timm("tf_efficientnet_lite0"),
    _timm("tinynet_e", (3, 106, 106)),
    _timm("hardcorenas_a"),
    _timm("convmixer_768_32"),
    _timm("visformer_tiny"),
    _timm("mobilevit_xxs", (3, 256, 256)),
    _timm("mobilevitv2_050", (3, 256, 256)),
    _timm("regnetz_b16"),
    _timm("gernet_s"),
    _timm("rexnet_100"),
    _timm("tresnet_m"),
    _timm("gcresnet33ts"),
    _transformers("resnet", "ResNetConfig", "ResNetForImageClassification"),
    _transformers("levit", "LevitConfig", "LevitForImageClassificationWithTeacher"),
    _transformers("regnet", "RegNetConfig", "RegNetForImageClassification"),
    _transformers("mobilenet_v1", "MobileNetV1Config", "MobileNetV1ForImageClassification"),
    _transformers("mobilenet_v2", "MobileNetV2Config", "MobileNetV2ForImageClassification"),
    _transformers("efficientnet", "EfficientNetConfig", "EfficientNetForImageClassification"),
    _transformers("mobilevit", "MobileViTConfig", "MobileViTForImageClassification", (3, 256, 256)),
)


def randomise_norms(module: nn.Module) -> None:
    """Random statistics and weights, the first gamma of each norm negative, as a trained network may have them."""
    generator = torch.Generator().manual_seed(0)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator, dtype=like.dtype) * (high - low) + low

    with torch.no_grad():
        for norm in module.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                if norm.running_mean is not None:
                    norm.running_mean.copy_(uniform(norm.running_mean, -0.5, 0.5))
                    norm.running_var.copy_(uniform(norm.running_var, 0.5, 2.0))
                if norm.weight is not None:
                    norm.weight.copy_(uniform(norm.weight, 0.5, 1.5))
                    norm.weight[0] *= -1
                    norm.bias.copy_(uniform(norm.bias, -0.5, 0.5))


class _FirstTensor(nn.Module):
    """The network with one tensor as its answer, whatever structure it gives."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        leaves = torch.utils._pytree.tree_leaves(self.network(x))
        outputs = [leaf.flatten(1) for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim > 1]
        return torch.cat(outputs, 1)


@dataclass(frozen=True)
class Measured:
    report: FoldReport
    relative_error: float
    capture_s: float
    fold_s: float


def measure(network: Network) -> Measured:
    """Capture, fold and compare one network in float64. Raises what torch.export raises when it refuses."""
    torch.manual_seed(0)
    module = _FirstTensor(network.build()).double().eval()
    randomise_norms(module)
    started = time.perf_counter()
    example = torch.randn(2, *network.row, dtype=torch.float64)
    program = export(module, (example,), dynamic_shapes=({0: Dim("rows", min=1, max=1024)},), strict=False)
    graph = program.run_decompositions({}).module(check_guards=False)
    captured = time.perf_counter()
    report = fold_batch_norms(graph)
    folded = time.perf_counter()
    worst = 0.0
    with torch.no_grad():
        for rows in (1, 2, 3):
            x = torch.randn(rows, *network.row, dtype=torch.float64)
            wanted, got = module(x), graph(x)
            worst = max(worst, float((wanted - got).abs().max() / wanted.abs().max()))
    return Measured(report, worst, captured - started, folded - captured)


def _reason(measured: Measured) -> str:
    if not measured.report.left:
        return ""
    first = measured.report.left[0]
    return f"{first.where.removeprefix('network.')}: {first.reason}"


def has_kernels() -> None:
    """torchvision's wheels want CUDA; without it their box operators are missing, which no network here uses."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _LIBRARY.append(torch.library.Library("torchvision", "DEF"))
        for name in ("nms", "qnms"):
            _LIBRARY[0].define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")


_LIBRARY: list[torch.library.Library] = []  # an operator lives as long as its library object


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="only networks whose name starts with this")
    parser.add_argument("--packages", action="store_true", help="export classes of packages, whole")
    parser.add_argument("--jobs", type=int, default=1, help="with --packages: so many classes at once")
    arguments = parser.parse_args()
    chosen = arguments.names
    if arguments.packages:
        sys.path.append(str(Path(__file__).parents[1]))  # a script's own folder is there alone
        from benchmarks.packages.report import report

        sys.exit(1 if report(chosen, arguments.jobs) else 0)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    has_kernels()
    skipped = {
        package for package in {n.package for n in NETWORKS} if importlib.util.find_spec(package) is None
    }
    for package in sorted(skipped):
        print(f"skipped: {package} is not installed")
    print("| network | found | left | relative error | capture s | fold s | the first left, and why |")
    print("|---|---|---|---|---|---|---|")
    found = left = 0
    for network in NETWORKS:
        wanted = not chosen or any(network.name.startswith(name) for name in chosen)
        if network.package in skipped or not wanted:
            continue
        label = f"{network.package} {network.name}"
        try:
            m = measure(network)
        except Exception as error:  # a table of what works must say what does not, and go on
            print(
                f"| {label} | | | | | | not captured: {type(error).__name__}: {str(error).splitlines()[0][:100]} |"
            )
            continue
        found += m.report.found
        left += len(m.report.left)
        counts = f"{m.report.found} | {len(m.report.left)} | {m.relative_error:.0e}"
        numbers = f"{counts} | {m.capture_s:.1f} | {m.fold_s:.2f}"
        print(f"| {label} | {numbers} | {_reason(m)} |", flush=True)
    print(f"\n{found} batch norm calls found, {left} left.")


if __name__ == "__main__":
    main()
