"""The whole export: every small network of models/, what lands on the disk, and what does not on failure."""

import copy
import datetime
import hashlib
import json
import sys
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from foldserve.models.errors import BadExample, NameNotUsable, NotWritable, VersionExists
from foldserve.models.export import ExportResult, export_model
from foldserve.models.export.pipeline import STEPS
from foldserve.models.export.writers.torchscript_writer import load_torchscript, run_torchscript
from foldserve.models.registry import resolve
from tests.models.export.artifact.test_versions import files_end_at
from tests.models.export.support import ConvNorm, First, Fn, pictures
from tests.models.support import randomise_norms

# name: (batch norms found, folded); worked out from the networks' own tables of layers.
NETWORKS = {
    "mlp": (0, 0),
    "convnet": (3, 3),
    "resnet_small": (21, 21),
    "unet": (17, 17),
    "lstm": (1, 1),
    "transformer": (0, 0),
    "digits": (3, 3),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_each_network_is_folded_whole_and_answers_as_before(name, exported):
    report = exported(name).report
    found, folded = NETWORKS[name]
    assert (report["fold"]["found"], report["fold"]["folded"]) == (found, folded)
    assert report["fold"]["left"] == []
    for form in ("torchscript", "onnx"):
        parity = report["parity"][form]
        assert parity["max_rel"] <= parity["tolerance"]
        assert parity["tolerance"] == 1e-4  # none of ours loses digits in float32
        assert {1, 2, 7, 32} <= set(parity["rows_tried"])
    assert report["parity"]["fold_float64"]["max_rel"] < 1e-12  # what a right fold measures: parity.py


@pytest.mark.parametrize("name", NETWORKS)
def test_no_batch_norm_is_left_in_either_file(name, exported):
    result = exported(name)
    model = onnx.load(result.onnx_path)
    assert not [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    assert "batch_norm" not in load_torchscript(result.torchscript_path).code


@pytest.mark.parametrize("name", ["lstm", "transformer", "unet"])
def test_both_files_take_other_rows_and_sizes_than_the_example(name, exported):
    result = exported(name)
    session = onnxruntime.InferenceSession(result.onnx_path, providers=["CPUExecutionProvider"])
    scripted = load_torchscript(result.torchscript_path)
    (x,) = resolve(name).example_inputs
    sizes = {-1: 2 * x.shape[-1] if name == "unet" else 9}
    shape = [3] + [sizes.get(n, n) for n in result.report["inputs"][0]["shape"][1:]]
    values = torch.randint(0, 5, shape) if name == "transformer" else torch.randn(shape)
    (got,) = session.run(None, {"x": values.numpy()})
    (other,) = run_torchscript(scripted, (values,))
    # Two runtimes, each within 1e-4 of float64.
    np.testing.assert_allclose(got, other.numpy(), rtol=0, atol=2e-4 * np.abs(got).max())


def test_the_result_names_the_files_of_the_version(exported):
    result = exported("mlp")
    assert isinstance(result, ExportResult)
    assert (result.folder.parent.name, result.folder.name) == ("mlp", "1")
    assert sorted(p.name for p in result.folder.iterdir()) == sorted(
        p.name for p in (result.onnx_path, result.torchscript_path, result.manifest, result.reference_path)
    )
    assert result.manifest.name == "manifest.json"
    assert json.loads(result.manifest.read_text()) == result.report
    assert list(result.seconds) == list(STEPS)


def test_the_manifest_has_exactly_the_keys_of_the_contract(exported):
    report = exported("digits").report
    assert set(report) == {
        "format_version", "name", "version", "created", "source", "inputs", "outputs", "opset", "tool_versions",
        "dims", "narrowed", "rows",
        "max_batch_size", "files", "parameter_count", "fold", "parity", "precision", "kept_fp32", "memory",
    }  # fmt: skip
    assert (report["format_version"], report["name"], report["version"]) == (1, "digits", "1")
    assert report["source"] == "digits"
    assert datetime.datetime.fromisoformat(report["created"]).tzinfo == datetime.UTC
    assert report["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert report["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 10]}]
    assert set(report["tool_versions"]) == {
        "foldserve",
        "torch",
        "onnx",
        "onnxscript",
        "onnxruntime",
        "python",
    }
    assert report["tool_versions"]["torch"] == torch.__version__
    assert set(report["parity"]) == {"torchscript", "onnx", "fold_float64"}
    assert set(report["parity"]["onnx"]) == {"max_abs", "max_rel", "outputs", "rows_tried", "tolerance"}
    assert set(report["parity"]["fold_float64"]) == {"max_rel", "rows_tried", "tolerance"}
    assert report["parameter_count"] == 38_442


def test_the_manifest_hashes_every_other_file(exported):
    result = exported("digits")
    assert set(result.report["files"]) == {"model.onnx", "model.pt", "reference.npz"}
    for name, entry in result.report["files"].items():
        content = (result.folder / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


def test_the_reference_holds_what_the_eager_network_answers(exported):
    result = exported("digits")
    with np.load(result.reference_path, allow_pickle=False) as reference:
        assert set(reference.files) == {"input.x", "output.y"}
        x, y = reference["input.x"], reference["output.y"]
    assert (x.dtype, y.dtype) == (np.float32, np.float32)
    assert x.shape == (7, 1, 8, 8)
    with torch.no_grad():
        want = resolve("digits").module.eval().double()(torch.from_numpy(x).double()).numpy()
    # Float64 rounded once to float32: half a unit in the last place, 6e-8 relative.
    np.testing.assert_allclose(y, want, rtol=1e-7)


def test_the_given_module_is_unchanged(tmp_path):
    module = randomise_norms(ConvNorm())
    module.norm.eval()
    before = copy.deepcopy(module.state_dict())
    export_model(module, (pictures(),), tmp_path, name="m")
    assert module.training
    assert module.conv.training
    assert not module.norm.training
    assert all(p.requires_grad for p in module.parameters())
    assert list(module.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_the_same_network_gives_the_same_files_except_for_the_time_stamp(tmp_path):
    module = randomise_norms(ConvNorm())
    first, second = (
        export_model(module, (pictures() * 0 + 1,), tmp_path / folder, name="m") for folder in ("a", "b")
    )
    assert first.report["files"] == second.report["files"]
    assert {**first.report, "created": ""} == {**second.report, "created": ""}


class Several(nn.Module):
    def forward(self, batch, ids):
        mask = batch["mask"]
        return {
            "scores": batch["x"].masked_fill(mask[..., None], 0).sum(1),
            "any": mask.any(1),
            "ids": ids + 1,
        }


def test_several_nested_inputs_and_outputs_of_every_kind_keep_their_names_and_types(tmp_path):
    example = {"x": torch.randn(2, 5, 3), "mask": torch.rand(2, 5) > 0.5}
    axes = {"batch_x": {1: "length"}, "batch_mask": {1: "length"}}
    ids = torch.tensor([[3], [9]], dtype=torch.int32)
    report = export_model(Several(), (example, ids), tmp_path, name="m", dynamic_axes=axes).report
    assert [(i["name"], i["datatype"], i["shape"]) for i in report["inputs"]] == [
        ("batch_x", "FP32", [-1, -1, 3]),
        ("batch_mask", "BOOL", [-1, -1]),
        ("ids", "INT32", [-1, 1]),
    ]
    # Alike where sizes are; nothing where only the rows vary.
    assert [i.get("dims") for i in report["inputs"]] == [["rows", "length", None], ["rows", "length"], None]
    assert [(o["name"], o["datatype"], o["shape"]) for o in report["outputs"]] == [
        ("scores", "FP32", [-1, 3]),
        ("any", "BOOL", [-1]),
        ("ids_out", "INT32", [-1, 1]),
    ]


def test_names_may_be_given(tmp_path):
    result = export_model(
        ConvNorm(),
        (pictures(),),
        tmp_path,
        name="m",
        version="7",
        input_names=["picture"],
        output_names=["map"],
    )
    assert result.folder == tmp_path / "m" / "7"
    assert [i["name"] for i in result.report["inputs"]] == ["picture"]
    session = onnxruntime.InferenceSession(result.onnx_path, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["picture"]
    assert [o.name for o in session.get_outputs()] == ["map"]


@pytest.mark.parametrize(
    ("network", "inputs", "axes"),
    [
        (ConvNorm().half(), (pictures().half(),), None),
        (First(nn.RNN(4, 5, batch_first=True)), (torch.randn(2, 6, 4),), {"x": {1: "length"}}),
        (Fn(lambda x: (x, x)), (pictures(),), None),
        (Fn(lambda x: x * 0), (pictures(),), None),
        (nn.Identity(), (pictures(),), None),
        (
            Fn(lambda x: (x.float() / 255 - 0.5).mean((1, 2))),
            (torch.randint(0, 256, (2, 8, 8)).byte(),),
            None,
        ),
        (nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3)), (torch.tensor([[0, 8]]),), {"input": {1: "n"}}),
    ],
    ids=["half", "rnn", "same output twice", "zeros", "identity", "pictures", "embedding of one row"],
)
def test_odd_networks_are_exported_and_verified(network, inputs, axes, tmp_path):
    report = export_model(network, inputs, tmp_path, name="m", dynamic_axes=axes).report
    assert report["parity"]["onnx"]["max_rel"] <= 1e-4


def test_nothing_is_begun_for_a_version_that_exists(tmp_path):
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    with pytest.raises(VersionExists):
        export_model(Fn(lambda x: pytest.fail("was run")), (pictures(),), tmp_path, name="m", version=1)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": "a/b"}, NameNotUsable, "cannot be a folder"),
        ({"version": 0}, NameNotUsable, "expected a positive integer"),
        ({"max_batch_size": 0}, BadExample, "max_batch_size is 0; expected a number of rows, 1 or more"),
        ({"output_names": ["x"]}, BadExample, r"output_names and the inputs share the names \['x'\]"),
        ({"output_names": ["a", "b"]}, BadExample, "expected 1 different, non-empty names"),
    ],
)
def test_bad_settings_are_refused_and_leave_nothing(options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        export_model(ConvNorm(), (pictures(),), tmp_path, **{"name": "m", **options})
    assert list(tmp_path.iterdir()) == []


def test_something_that_is_no_module_is_refused(tmp_path):
    with pytest.raises(BadExample, match=r"module is a function; expected an nn\.Module"):
        export_model(lambda x: x, (pictures(),), tmp_path, name="m")


@pytest.mark.parametrize("limit", [100, 3000])
def test_a_full_disk_leaves_nothing_in_whichever_file_it_strikes(limit, tmp_path):
    with pytest.raises(NotWritable, match="nothing was left there"), files_end_at(limit):
        export_model(ConvNorm(), (pictures(),), tmp_path, name="m")
    assert list(tmp_path.iterdir()) == []


def test_progress_tells_each_step_when_it_begins_and_when_it_has_ended(tmp_path):
    events: list[Any] = []
    export_model(ConvNorm(), (pictures(),), tmp_path, name="m", progress=events.append)
    assert [(e.step, e.index) for e in events if e.seconds is None] == [
        (step, number) for number, step in enumerate(STEPS, start=1)
    ]
    assert [e.step for e in events if e.seconds is not None] == list(STEPS)
    assert {e.total for e in events} == {len(STEPS)}


def test_an_export_leaves_the_process_as_it_was_and_writes_nothing_to_the_terminal(tmp_path, capfd):
    stdout = sys.stdout
    export_model(ConvNorm(), (torch.zeros(2, 3, 8, 8),), tmp_path, name="m")
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    assert sys.stdout is stdout
    assert capfd.readouterr() == ("", "")


def test_an_export_draws_no_number_from_the_users_generator(tmp_path):
    module = ConvNorm()
    before = torch.random.get_rng_state()
    export_model(module, (torch.zeros(2, 3, 8, 8),), tmp_path, name="m")
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), ValueError("of the caller")])
def test_an_error_of_the_callers_callback_comes_out_as_it_is_and_leaves_nothing(error, tmp_path):
    def fails(event):
        raise error

    with pytest.raises(type(error)) as raised:
        export_model(ConvNorm(), (pictures(),), tmp_path, name="m", progress=fails)
    assert raised.value is error
    assert list(tmp_path.iterdir()) == []
