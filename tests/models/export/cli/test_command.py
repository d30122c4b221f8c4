import dataclasses
import io
import json
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch

from foldserve.models.errors import BadExample, VersionExists
from foldserve.models.export import export_model, steps
from foldserve.models.export.cli.command import ExportCommand, ProgressLines, main
from foldserve.models.export.cli.example_option import examples_from
from foldserve.models.export.cli.summary import table
from foldserve.models.export.pipeline import Progress
from foldserve.models.registry import resolve
from foldserve.service.cli import main as service_main


def test_the_command_is_found_by_the_name_export():
    (entry,) = entry_points(group="foldserve.commands", name="export")
    assert entry.load() is ExportCommand


def test_listing_the_command_does_not_wait_for_torch():
    code = "import sys, foldserve.models.export.cli.command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_export_prints_the_table_and_plain_progress_lines(tmp_path, capsys):
    assert main(["mlp", "--repository", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "0 found, 0 folded, 0 left" in out
    assert "inputs         x FP32 -1x10" in out
    assert "tolerance 1e-04, rows 1, 2, 7, 32, opset 18" in out
    assert err.splitlines()[0].startswith("[1/10] copy: ")
    assert len(err.splitlines()) == 10
    assert "\x1b" not in err
    assert json.loads((tmp_path / "mlp" / "1" / "manifest.json").read_text())["source"] == "mlp"


def test_the_version_is_the_next_one_when_none_is_given(tmp_path, capsys):
    (tmp_path / "m" / "4").mkdir(parents=True)
    assert main(["mlp", "--repository", str(tmp_path), "--name", "m", "--max-batch-size", "4"]) == 0
    assert json.loads((tmp_path / "m" / "5" / "manifest.json").read_text())["max_batch_size"] == 4


def test_the_command_of_the_readme_is_taken_word_for_word_with_a_factory_of_the_users(
    tmp_path, monkeypatch, capsys
):
    readme = (Path(__file__).resolve().parents[4] / "README.md").read_text()
    (command,) = re.findall(r"foldserve export (my_package\.my_file:.*)", readme)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "my_file.py").write_text(
        "from torch import nn\n\ndef my_factory():\n    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten())\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert main(command.split()) == 0
    assert "inputs         x FP32 -1x3x224x224" in capsys.readouterr().out


def test_what_was_done_to_the_names_in_a_weights_file_is_told_in_one_line(tmp_path, capsys):
    state = resolve("mlp").module.state_dict()
    file = tmp_path / "w.ckpt"
    torch.save({"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}}, file)
    arguments = ["mlp", "--repository", str(tmp_path), "--max-batch-size", "4"]
    assert main([*arguments, "--weights", str(file)]) == 0
    first = capsys.readouterr().err.splitlines()[0]
    assert first.endswith("w.ckpt: taken from 'state_dict', the prefix 'model.' is dropped")
    assert main([*arguments, "--weights-key", "ema"]) == 2
    assert "give the file too: --weights FILE" in capsys.readouterr().err


def test_options_are_not_abbreviated(tmp_path, capsys):
    for run in (main, lambda words: service_main(["export", *words])):
        with pytest.raises(SystemExit) as ended:
            run(["mlp", "--repository", str(tmp_path), "--weight", "net.pt"])
        assert ended.value.code == 2
        assert "--weight" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_python_takes_the_next_version_as_the_command_does(tmp_path):
    (tmp_path / "m" / "4").mkdir(parents=True)
    network = resolve("mlp")
    done = export_model(network.module, network.example_inputs, tmp_path, name="m", max_batch_size=2)
    assert done.report["version"] == done.folder.name == "5"
    with pytest.raises(VersionExists, match="export as --version 6"):
        export_model(network.module, network.example_inputs, tmp_path, name="m", version=4)


def test_an_example_on_the_command_line_takes_the_place_of_the_networks_own(tmp_path, capsys):
    arguments = ["torch.nn:Identity", "--repository", str(tmp_path), "--name", "same", "--example"]
    assert main([*arguments, "picture:UINT8:-1x3x-1"]) == 0
    assert "inputs         picture UINT8 -1x3x-1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "there is no network 'nope'"),
        (["mlp", "--name", "a/b"], "the model name 'a/b' cannot be a folder"),
        (["mlp", "--version", "x"], "the version 'x' is not usable"),
        (["mlp", "--version", "3"], "3 exists, and versions are never overwritten; export as --version 4"),
        (["mlp", "--example", "x:FP32:-1x11"], "the network fails on its own example (x: float32 (2, 11))"),
        (["torch.nn:Identity"], "gives no example inputs; add --example"),
        (["mlp", "--opset", "7"], "opset is 7; torch.onnx writes 18 or newer"),
        (["mlp", "--opset", "99"], "opset is 99; torch.onnx writes 18 or newer, here up to"),
        (["mlp", "--weights", "missing.safetensors"], "missing.safetensors"),
    ],
)
def test_an_error_of_the_user_is_one_message_on_stderr_and_exit_code_2(arguments, message, tmp_path, capsys):
    (tmp_path / "mlp" / "3").mkdir(parents=True)
    assert main([*arguments, "--repository", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert [p.name for p in tmp_path.iterdir()] == ["mlp"]
    assert [p.name for p in (tmp_path / "mlp").iterdir()] == ["3"]


def test_ctrl_c_leaves_nothing_and_ends_with_130(tmp_path, capsys, monkeypatch):
    def interrupted(*of_earlier_steps):
        raise KeyboardInterrupt

    monkeypatch.setattr(steps, "write_onnx", interrupted)
    assert main(["mlp", "--repository", str(tmp_path / "r")]) == 130
    assert "stopped; nothing was written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_of_the_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "foldserve.models.export.pipeline", None)
    monkeypatch.setattr("builtins.__import__", _without("foldserve.models.export.pipeline", "onnxscript"))
    assert main(["mlp", "--repository", str(tmp_path)]) == 2
    assert "'onnxscript' is not installed; it comes with the extra `export`" in capsys.readouterr().err


def _without(importer: str, package: str):
    real = __import__

    def importing(name, *args, **kwargs):
        if name == importer:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return real(name, *args, **kwargs)

    return importing


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_a_step_is_shown_while_it_runs_and_its_line_is_written_over():
    stream = Terminal()
    lines = ProgressLines(stream)
    lines(Progress("capture", 2, 9, None))
    assert stream.getvalue().endswith("[2/9] capture ...")
    lines(Progress("capture", 2, 9, 1.234))
    assert stream.getvalue().endswith("\r\x1b[2K[2/9] capture  1.2 s\n")


def test_the_table_gives_the_reason_for_each_norm_that_is_left(exported):
    result = exported("convnet")
    left = [{"where": "norm1", "reason": "it is an output"}]
    report = {**result.report, "fold": {"found": 4, "folded": 3, "left": left}}
    text = table(dataclasses.replace(result, report=report))
    assert "4 found, 3 folded, 1 left" in text
    assert "left: norm1: it is an output" in text


def test_examples_are_read_with_their_dynamic_axes():
    (x, ids), axes, names = examples_from(["x:FP32:-1x3x-1", "ids:INT64:-1"])
    assert (tuple(x.shape), x.dtype) == ((2, 3, 32), torch.float32)
    assert (tuple(ids.shape), ids.dtype) == ((2,), torch.int64)
    assert axes == {"x": {2: "x_2"}}
    assert names == ("x", "ids")


@pytest.mark.parametrize("word", ["FP32", "fp32", "float32", "Float32"])
def test_types_go_by_the_words_of_the_protocol_and_by_those_of_torch_and_numpy(word):
    assert examples_from([f"x:{word}:-1x3"])[0][0].dtype == torch.float32


def test_an_example_may_have_its_rows_in_another_dim():
    (x, y), axes, _ = examples_from(["x:FP32:-1xrowsx3", "y:FP32:rowsx-1"])
    assert (tuple(x.shape), tuple(y.shape)) == ((32, 2, 3), (2, 32))
    assert axes == {"x": {0: "x_0", 1: "rows"}, "y": {1: "y_1"}}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("x", r"'x': expected NAME:DTYPE:SIZES"),
        (":FP32:-1", r"expected NAME:DTYPE:SIZES"),
        ("a b:FP32:-1", r"'a b' is not a name for an input"),
        ("x:float:-1", r"'float' is not a type; did you mean float16 or float32 or float64\?"),
        ("x:zzz:-1", r"'zzz' is not a type; expected one of BOOL \(bool\), .*, FP32 \(float32\)"),
        ("x:FP32:-1x0", r"'-1x0' are not sizes"),
        ("x:FP32:", r"'' are not sizes"),
        ("x:FP32:2x3", r"the first size is the rows and must be -1, not 2; .* write `rows` for it"),
        ("x:FP32:rowsx3xrows", r"says `rows` 2 times; expected one size"),
    ],
)
def test_an_example_that_cannot_be_read_is_refused_with_the_reason(option, message):
    with pytest.raises(BadExample, match=message):
        examples_from([option])


def test_every_bad_example_is_told_at_once():
    with pytest.raises(BadExample, match=r"(?s)'x:FP33:-1'.*'x:FP32:2'.*given twice"):
        examples_from(["x:FP33:-1", "x:FP32:2", "y:FP32:-1", "y:FP32:-1"])
