"""Which of the two files an export writes: the one asked for, or the one that can be written; and who serves it."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from models.errors import FormNotUsable, FormNotWritten, NotCapturable, NotWritable, ParityFailed
from models.export import export_model, pipeline, to_onnx
from models.export.__main__ import main
from service.artifact import read_artifact
from service.backends.base import SessionOptions
from service.errors import ConfigError
from service.loading import load_model
from service.model_config import parse_model_config
from tests.models.export.support import ConvNorm, First, Fn, pictures
from tests.models.support import randomise_norms


def export(module, folder, *inputs, **options):
    return export_model(module.eval(), inputs or (pictures(),), folder, name="m", **options)


def served(result, **config):
    """The version as a server reads it, with what the server answers to the reference's inputs."""
    settings = parse_model_config(config, "config.yaml")
    artifact = read_artifact(result.folder, "m", "1", settings)
    session = load_model(artifact, settings, "cpu", SessionOptions(threads=1))
    with np.load(artifact.reference) as arrays:
        inputs = {spec.name: arrays[f"input.{spec.name}"] for spec in artifact.signature.inputs}
        return artifact, session.run(inputs)["y"], arrays["output.y"]


def files_of(result):
    return {path.name for path in result.folder.iterdir()} - {"manifest.json", "reference.npz"}


def cannot(*_):
    raise FormNotWritten("no way to write it")


@pytest.mark.parametrize(
    ("only", "file", "other", "backend"),
    [
        ("torchscript", "model.pt", "model.onnx", "torchscript"),
        ("onnx", "model.onnx", "model.pt", "onnxruntime"),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_file_asked_for_is_written_proved_and_served_alone(
    only, file, other, backend, precision, tmp_path
):
    result = export(randomise_norms(ConvNorm()), tmp_path, only=only, precision=precision)
    assert files_of(result) == {file}
    assert set(result.report["files"]) == {file, "reference.npz"}
    assert set(result.report["parity"]) == {only, "fold_float64"}
    assert result.report["not_written"] == [{"file": other, "reason": f"{file} alone was asked for"}]
    assert (result.report["opset"] is None) == (only == "torchscript")
    paths = {"model.pt": result.torchscript_path, "model.onnx": result.onnx_path}
    assert (paths[file], paths[other]) == (result.folder / file, None)
    artifact, got, want = served(result)
    assert (artifact.backend, artifact.summary()["not_written"]) == (backend, result.report["not_written"])
    # Both precisions within the tolerance that the manifest states.
    assert np.abs(got - want).max() <= artifact.parity("y").tolerance * np.abs(want).max()


def test_an_fp16_onnx_file_alone_is_held_to_the_weights_of_the_network(tmp_path, monkeypatch):
    def wrong(captured, opset=None):
        model = to_onnx.to_onnx(captured, opset)
        weight = next(w for w in model.graph.initializer if len(w.dims) == 4)
        # 2 % off, within the tolerance of 16 bits.
        weight.raw_data = (np.frombuffer(weight.raw_data, np.float16) * np.float16(1.02)).tobytes()
        return model

    monkeypatch.setattr(pipeline, "to_onnx", wrong)
    with pytest.raises(ParityFailed, match="ONNX file without its roundings"):
        export(ConvNorm(), tmp_path, only="onnx", precision="fp16")


UNKNOWN_TO_ONNX = {
    "an operator without a translation": (Fn(lambda x: torch.cdist(x, x)), (2, 5, 4), "cdist"),
    "a file that cannot run": (
        First(nn.LSTM(4, 5, proj_size=3, batch_first=True)),
        (2, 6, 4),
        "initial_c must have shape",
    ),
}


@pytest.mark.parametrize("kind", UNKNOWN_TO_ONNX)
def test_where_there_can_be_no_onnx_file_the_other_is_written_and_served_with_the_reason(kind, tmp_path):
    network, shape, reason = UNKNOWN_TO_ONNX[kind]
    result = export(network, tmp_path, torch.randn(shape))
    assert files_of(result) == {"model.pt"}
    (missing,) = result.report["not_written"]
    assert missing["file"] == "model.onnx"
    assert reason in missing["reason"]
    assert (result.onnx_path, result.report["opset"]) == (None, None)
    artifact, got, want = served(result)
    assert artifact.backend == "torchscript"
    assert np.abs(got - want).max() <= artifact.parity("y").tolerance * np.abs(want).max()
    with pytest.raises(ConfigError, match=f"holds no model.onnx, which the export did not write: .*{reason}"):
        served(result, backend="onnxruntime")


def test_a_file_that_onnx_runtime_does_not_load_is_removed_and_no_path_of_the_machine_is_told(
    tmp_path, monkeypatch
):
    def of_no_runtime(captured, opset=None):
        model = to_onnx.to_onnx(captured, opset)
        model.graph.node[0].op_type = "NoSuchOperator"
        return model

    monkeypatch.setattr(pipeline, "to_onnx", of_no_runtime)
    result = export(ConvNorm(), tmp_path)
    assert files_of(result) == {"model.pt"}
    (missing,) = result.report["not_written"]
    assert "NoSuchOperator" in missing["reason"]
    assert str(tmp_path) not in result.manifest.read_text()


def test_where_there_can_be_no_torchscript_file_the_other_is_written_and_served(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "to_torchscript", cannot)
    result = export(randomise_norms(ConvNorm()), tmp_path, precision="fp16")
    assert files_of(result) == {"model.onnx"}
    assert result.report["not_written"] == [{"file": "model.pt", "reason": "no way to write it"}]
    assert served(result)[0].backend == "onnxruntime"


@pytest.mark.parametrize("options", [{}, {"precision": "bf16"}])
def test_where_neither_file_can_be_written_both_reasons_are_told(options, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "to_torchscript", cannot)
    network = nn.Sequential(nn.Linear(4, 4), Fn(lambda x: torch.cdist(x, x)))
    with pytest.raises(
        NotCapturable, match=r"neither file can be written.*model.pt: no way to write it.*Write that step"
    ) as raised:
        export(network, tmp_path, torch.randn(2, 5, 4), **options)
    assert ("no bf16 kernels" if options else "cdist") in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_the_only_file_asked_for_is_refused_where_it_cannot_be_written(tmp_path):
    for kind in UNKNOWN_TO_ONNX:
        network, shape, reason = UNKNOWN_TO_ONNX[kind]
        with pytest.raises(
            NotCapturable, match=rf"model.onnx is the only file asked for.*{reason}.*Leave --only onnx out"
        ):
            export(network, tmp_path, torch.randn(shape), only="onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_answers_wrong_fails_the_export_and_the_way_round_is_told(tmp_path):
    # torch.onnx unrolls this for the sizes of the example, and the file runs on others.
    network, x = Fn(lambda x: nn.functional.adaptive_avg_pool2d(x, 3)), torch.randn(2, 3, 7, 8)
    axes = {"x": {2: "h", 3: "w"}}
    with pytest.raises(
        ParityFailed, match=r"ONNX file.*model.pt alone.*--only torchscript \(in Python only="
    ):
        export(network, tmp_path, x, dynamic_axes=axes)
    with pytest.raises(ParityFailed) as raised:
        export(network, tmp_path, x, dynamic_axes=axes, only="onnx")
    assert "--only" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []
    assert files_of(export(network, tmp_path, x, dynamic_axes=axes, only="torchscript")) == {"model.pt"}


def test_a_wrong_file_beside_one_that_cannot_be_written_is_told_with_both_reasons(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "to_torchscript", cannot)

    def wrong(session, inputs):
        return tuple(t * 1.5 for t in to_onnx.run_onnx(session, inputs))

    monkeypatch.setattr(pipeline, "run_onnx", wrong)
    with pytest.raises(ParityFailed, match=r"ONNX file.*model.pt alone is no way round: no way to write it"):
        export(ConvNorm(), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": "pt"}, "only is 'pt'; expected torchscript or onnx"),
        ({"only": ["onnx"]}, "expected torchscript or onnx"),
        ({"only": "onnx", "precision": "bf16"}, "precision bf16 writes no ONNX file"),
        (
            {"only": "torchscript", "opset": 20},
            "opset 20 is asked for, but --only torchscript writes no ONNX",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused_before_the_work(options, message, tmp_path):
    with pytest.raises(FormNotUsable, match=message):
        export(Fn(lambda x: pytest.fail("was run")), tmp_path, **options)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError()])
def test_what_the_machine_lacks_is_no_reason_to_go_without_a_file(error, tmp_path, monkeypatch):
    def lacking(*_, **__):
        raise RuntimeError("torch.onnx wraps everything") from error

    monkeypatch.setattr(torch.onnx, "export", lacking)
    with pytest.raises(NotWritable if isinstance(error, OSError) else MemoryError):
        export(ConvNorm(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_takes_only_and_tells_loudly_what_was_not_written(tmp_path, capsys, monkeypatch):
    (tmp_path / "only_nets.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Distances(nn.Module):\n"
        "    def forward(self, x):\n        return torch.cdist(x, x)\n\n\n"
        "def distances():\n    return Distances(), (torch.randn(2, 5, 4),)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ["only_nets:distances", "--repository", str(tmp_path / "r")]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "model.onnx was NOT written, the other file alone was: torch.onnx cannot write the network" in err
    assert "ONNX           no file: torch.onnx cannot write the network" in out
    assert main([*arguments, "--only", "torchscript"]) == 0
    assert "NOT written" not in capsys.readouterr().err
    report = json.loads((tmp_path / "r" / "distances" / "2" / "manifest.json").read_text())
    assert report["not_written"] == [{"file": "model.onnx", "reason": "model.pt alone was asked for"}]
    assert main([*arguments, "--only", "onnx"]) == 2
    assert "model.onnx is the only file asked for" in capsys.readouterr().err
