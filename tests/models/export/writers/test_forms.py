"""Which of the two files an export writes: the one asked for, or the one that can be written; and who serves it."""

import numpy as np
import pytest
import torch
from torch import nn

from foldserve.models.errors import FormNotUsable, FormNotWritten, NotCapturable, NotWritable, ParityFailed
from foldserve.models.export import export_model, steps
from foldserve.models.export.cli.command import main
from foldserve.models.export.precision.precision import PRECISIONS
from foldserve.models.export.verify import check_files
from foldserve.models.export.writers import onnx_writer
from foldserve.models.export.writers.forms import TORCHSCRIPT, chosen_forms
from foldserve.service.backends.base import SessionOptions
from foldserve.service.errors import ConfigError
from foldserve.service.repository.artifact import read_artifact
from foldserve.service.repository.loading import load_model
from foldserve.service.repository.model_config import parse_model_config
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
    ("only", "file", "other", "backend", "precision"),
    [
        ("torchscript", "model.pt", "model.onnx", "torchscript", "fp32"),
        ("onnx", "model.onnx", "model.pt", "onnxruntime", "fp16"),
    ],
)
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
        written = onnx_writer.to_onnx(captured, opset)
        weight = next(w for w in written.model.graph.initializer if len(w.dims) == 4)
        # 0.4 % off, within the tolerance of 16 bits.
        weight.raw_data = (np.frombuffer(weight.raw_data, np.float16) * np.float16(1.004)).tobytes()
        return written

    monkeypatch.setattr(steps, "to_onnx", wrong)
    with pytest.raises(
        ParityFailed, match=r"ONNX file holds another weight than the network: conv \(aten.conv2d\)"
    ):
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
        written = onnx_writer.to_onnx(captured, opset)
        written.model.graph.node[0].op_type = "NoSuchOperator"
        return written

    monkeypatch.setattr(steps, "to_onnx", of_no_runtime)
    result = export(ConvNorm(), tmp_path)
    assert files_of(result) == {"model.pt"}
    (missing,) = result.report["not_written"]
    assert "NoSuchOperator" in missing["reason"]
    assert str(tmp_path) not in result.manifest.read_text()


def test_where_there_can_be_no_torchscript_file_the_other_is_written_and_served(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "to_torchscript", cannot)
    result = export(randomise_norms(ConvNorm()), tmp_path, precision="fp16")
    assert files_of(result) == {"model.onnx"}
    assert result.report["not_written"] == [{"file": "model.pt", "reason": "no way to write it"}]
    assert served(result)[0].backend == "onnxruntime"


def test_where_neither_file_can_be_written_both_reasons_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "to_torchscript", cannot)
    with pytest.raises(
        NotCapturable,
        match=r"neither file can be written.*model.pt: no way to write it.*cdist.*Write that step",
    ):
        export(Fn(lambda x: torch.cdist(x, x)), tmp_path, torch.randn(2, 5, 4))
    assert list(tmp_path.iterdir()) == []


def test_the_only_file_asked_for_is_refused_where_it_cannot_be_written(tmp_path):
    network, shape, _ = UNKNOWN_TO_ONNX["a file that cannot run"]
    with pytest.raises(
        NotCapturable, match=r"model.onnx is the only file asked for.*initial_c.*Leave --only onnx out"
    ):
        export(network, tmp_path, torch.randn(shape), only="onnx")
    assert list(tmp_path.iterdir()) == []


def test_in_bf16_which_has_no_onnx_file_a_network_that_torchscript_cannot_write_is_refused(tmp_path):
    forms = chosen_forms(None, PRECISIONS["bf16"], None)
    with pytest.raises(NotCapturable, match=r"no bf16 kernels.*no way to write it"):
        forms.attempt(TORCHSCRIPT, tmp_path, cannot)


def wrong(session, inputs):
    return tuple(t * 1.5 for t in onnx_writer.run_onnx(session, inputs))


@pytest.mark.parametrize("only", [None, "onnx"])
def test_a_file_that_answers_wrong_fails_the_export_and_the_way_round_is_told(only, tmp_path, monkeypatch):
    monkeypatch.setattr(check_files, "run_onnx", wrong)
    with pytest.raises(ParityFailed, match="the ONNX file answers differently") as raised:
        export(ConvNorm(), tmp_path, only=only)
    way = "export model.pt alone, if that is right: --only torchscript (in Python only='torchscript')"
    assert (way in str(raised.value)) == (only is None)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_file_is_no_file_that_cannot_be_written_where_its_layer_cannot_be_found(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(check_files, "run_onnx", wrong)
    monkeypatch.setattr(check_files, "_locate_onnx", cannot)
    with pytest.raises(ParityFailed, match="Which layer it is could not be looked for: no way to write it"):
        export(ConvNorm(), tmp_path)


def test_a_wrong_file_beside_one_that_cannot_be_written_is_told_with_both_reasons(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "to_torchscript", cannot)
    monkeypatch.setattr(check_files, "run_onnx", wrong)
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
    assert (
        "model.onnx was NOT written, only the other file was: torch.onnx cannot write the network at " in err
    )
    assert "ONNX           no file: torch.onnx cannot write the network at " in out
    assert main([*arguments, "--only", "onnx"]) == 2
    assert "model.onnx is the only file asked for" in capsys.readouterr().err
