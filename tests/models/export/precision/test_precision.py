"""Whole exports in fp16 and bf16: what is written, how far it is off, and that a server on a CPU takes it."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

from foldserve.models.errors import ParityFailed, PrecisionNotUsable
from foldserve.models.export import export_model
from foldserve.models.export.cli.command import main
from foldserve.models.export.cli.summary import table
from foldserve.models.export.precision.precision import FP32, PRECISIONS, check_precision
from foldserve.models.export.verify.tolerance import file_tolerance
from foldserve.models.export.writers.torchscript_writer import load_torchscript
from foldserve.models.registry import resolve
from foldserve.service.backends import BACKENDS, SessionOptions
from foldserve.service.repository.artifact import read_artifact
from foldserve.service.repository.loading import load_model
from foldserve.service.repository.model_config import read_model_config
from tests.models.export.conftest import TRAINED
from tests.models.export.support import ConvNorm, Fn, pictures
from tests.models.support import randomise_norms

NETWORKS = ("mlp", "convnet", "resnet_small", "lstm", "transformer", "digits")


@pytest.fixture(scope="session")
def lowered(tmp_path_factory):
    """Export a network of models/ by name in a precision, norms randomised; once per session."""
    done = {}

    def export(name, precision):
        if (name, precision) not in done:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                target = resolve(name)
            module = target.module if name in TRAINED else randomise_norms(target.module)
            done[name, precision] = export_model(
                module,
                target.example_inputs,
                tmp_path_factory.mktemp(precision),
                name=name,
                dynamic_axes=target.dynamic_axes,
                input_names=target.input_names,
                precision=precision,
            )
        return done[name, precision]

    return export


@pytest.mark.parametrize("name", NETWORKS)
def test_each_network_in_fp16_is_written_to_both_files_and_is_as_exact_as_fp16_can_be(name, lowered):
    report = lowered(name, "fp16").report
    assert (report["precision"], report["kept_fp32"]) == ("fp16", [])
    assert report["fold"]["left"] == []
    for form in ("torchscript", "onnx"):
        # Above u / 100: something was really rounded. At most 0.1: see parity.py.
        assert 2**-11 / 100 < report["parity"][form]["max_rel"] <= report["parity"][form]["tolerance"] <= 0.1


@pytest.mark.parametrize("name", NETWORKS)
def test_each_network_in_bf16_is_written_as_torchscript_alone(name, lowered):
    result = lowered(name, "bf16")
    report = result.report
    assert sorted(path.name for path in result.folder.iterdir()) == [
        "manifest.json",
        "model.pt",
        "reference.npz",
    ]
    assert (result.onnx_path, report["opset"], report["precision"]) == (None, None, "bf16")
    assert set(report["parity"]) == {"torchscript", "fold_float64"}
    assert set(report["files"]) == {"model.pt", "reference.npz"}
    parity = report["parity"]["torchscript"]
    assert 2**-8 / 100 < parity["max_rel"] <= parity["tolerance"] <= 0.1


def test_weights_in_both_fp16_files_are_fp16_and_take_half_the_room(lowered, exported):
    half, full = lowered("resnet_small", "fp16"), exported("resnet_small")
    assert fp32_weights(half) == []
    assert {b.dtype for b in load_torchscript(half.torchscript_path).buffers()} == {torch.float16}
    assert half.report["memory"]["weights_bytes"] * 2 == full.report["memory"]["weights_bytes"]
    for name in ("model.onnx", "model.pt"):
        # Beside the weights, the graph takes some of each file.
        assert half.report["files"][name]["size"] < 0.65 * full.report["files"][name]["size"]


def test_the_norms_of_a_transformer_keep_their_weights_in_fp32(lowered):
    assert fp32_weights(lowered("transformer", "fp16"))
    assert all("norm" in name for name in fp32_weights(lowered("transformer", "fp16")))


def fp32_weights(result):
    model = onnx.load(result.onnx_path)
    return [
        t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and np.prod(t.dims) > 1
    ]


@pytest.mark.parametrize("name", ["digits", "transformer"])
def test_inputs_outputs_and_the_reference_are_those_of_fp32(name, lowered, exported):
    half, full = lowered(name, "fp16"), exported(name)
    assert [half.report[key] for key in ("inputs", "outputs")] == [
        full.report[key] for key in ("inputs", "outputs")
    ]
    with np.load(half.reference_path) as lower, np.load(full.reference_path) as wanted:
        assert set(lower) == set(wanted)
        assert all(np.array_equal(lower[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize(
    ("precision", "backend"), [("fp16", "onnxruntime"), ("fp16", "torchscript"), ("bf16", "torchscript")]
)
@pytest.mark.parametrize("name", ["resnet_small", "lstm", "transformer"])
def test_a_server_on_a_cpu_loads_checks_and_warms_it(name, precision, backend, lowered):
    folder = lowered(name, precision).folder
    config = dataclasses.replace(read_model_config(folder.parent / "config.yaml", name), backend=backend)
    artifact = read_artifact(folder, name, "1", config)
    of_file = lowered(name, precision).report["parity"][BACKENDS[backend].parity]
    assert artifact.parity("y").tolerance == of_file["outputs"]["y"]["tolerance"] == of_file["tolerance"]
    session = load_model(artifact, config, "cpu", SessionOptions(threads=1))
    with np.load(artifact.reference) as arrays:
        answers = session.run({"x": arrays["input.x"]})
        assert answers["y"].dtype == arrays["output.y"].dtype


def test_a_server_picks_the_torchscript_file_of_a_bf16_artifact_by_itself(lowered):
    folder = lowered("mlp", "bf16").folder
    artifact = read_artifact(folder, "mlp", "1", read_model_config(folder.parent / "config.yaml", "mlp"))
    assert (artifact.backend, artifact.summary()["precision"]) == ("torchscript", "bf16")


def test_attention_with_rows_first_is_exported_and_served_without_a_crash_of_the_runtime(tmp_path):
    # In a process of its own, since what is looked for is a crash; see _CRASHING_FUSION, which each side has.
    code = """if True:
        import sys, torch
        from torch import nn
        from foldserve.models.export import export_model
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)
        export_model(layer, (torch.randn(2, 7, 16),), sys.argv[1], name="m", precision="fp16")
        from pathlib import Path
        from foldserve.service.backends.onnxruntime.cpu_session import read_signature
        print(read_signature(Path(sys.argv[1]) / "m" / "1" / "model.onnx").inputs[0].datatype)
    """
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "FP32\n", "")


def test_bytes_stay_bytes_for_the_client(tmp_path):
    net = nn.Sequential(Fn(lambda x: (x.float() - 127.0) / 64), ConvNorm())
    x = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    report = export_model(randomise_norms(net), (x,), tmp_path, name="m", precision="fp16").report
    assert (report["inputs"][0]["datatype"], report["outputs"][0]["datatype"]) == ("UINT8", "FP32")


def test_a_network_that_fp16_is_too_coarse_for_is_refused_with_the_mend(tmp_path):
    class Difference(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):
            # The difference of two nearly equal numbers: a hundredth of them is left, and 5 % of that is rounding.
            y = self.layer(x)
            return (y + 1000.0) - 1000.0

    with pytest.raises(
        ParityFailed, match=r"tolerance 1.0e-01 of fp16, which may be too coarse.*fp32 passes"
    ):
        export_model(Difference(), (torch.randn(2, 8),), tmp_path, name="m", precision="fp16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("word", "own_error", "tolerance"),
    [
        ("fp32", 1e-7, 1e-4),
        ("fp32", 1e-5, 2e-4),
        ("fp32", 1e-2, 1e-2),  # beyond it a network is refused as ill-conditioned
        ("fp16", 0.0, 8 * 2**-11),  # at least eight roundings
        ("fp16", 4e-7, 4 * 4e-7 * 2**13),  # four times what fp16 makes of the own error
        ("fp16", 1e-2, 0.1),  # never more than a tenth
        ("bf16", 0.0, 8 * 2**-8),
        ("bf16", 4e-7, 4 * 4e-7 * 2**16),
    ],
)
def test_the_tolerance_comes_from_the_roundoff_and_the_networks_own_error(word, own_error, tolerance):
    assert file_tolerance(PRECISIONS[word], own_error) == pytest.approx(min(tolerance, 0.1))


def test_the_precisions_have_the_roundoff_of_their_types():
    for precision in PRECISIONS.values():
        # torch's eps is the distance from 1 to the next number: twice the largest rounding.
        assert precision.roundoff == torch.finfo(precision.dtype).eps / 2
    assert check_precision("fp32") is FP32


@pytest.mark.parametrize("word", ["int8", "FP16", "", None, 16])
def test_an_unknown_precision_is_refused_with_the_choices(word, tmp_path):
    with pytest.raises(PrecisionNotUsable, match="expected one of fp32, fp16, bf16"):
        export_model(ConvNorm(), (pictures(),), tmp_path, name="m", precision=word)
    assert list(tmp_path.iterdir()) == []


def test_an_opset_for_a_file_that_is_not_written_is_refused(tmp_path, capsys):
    assert main(["mlp", "--repository", str(tmp_path / "r"), "--precision", "bf16", "--opset", "20"]) == 2
    assert "precision bf16 writes no ONNX file" in capsys.readouterr().err


def test_the_command_line_sets_the_precision_and_the_table_tells_it(tmp_path, capsys):
    assert main(["mlp", "--repository", str(tmp_path), "--precision", "bf16"]) == 0
    out = capsys.readouterr().out
    assert "precision      bf16" in out
    assert "ONNX           no file: ONNX Runtime's CPU provider has no bf16 kernels" in out
    assert json.loads((tmp_path / "mlp" / "1" / "manifest.json").read_text())["precision"] == "bf16"


def test_the_table_tells_what_was_kept_in_float32_and_why(exported):
    result = exported("mlp")
    kept = [{"where": "layer", "reason": "its results go up to 1e+05"}]
    text = table(dataclasses.replace(result, report={**result.report, "kept_fp32": kept}))
    assert "in fp32: layer: its results go up to 1e+05" in text
