"""How far each output may be off: what is refused, what the caller may choose, what the manifest then says."""

import math

import pytest
import torch
from torch import nn

from foldserve.models.errors import BadExample, NotCapturable, ParityFailed
from foldserve.models.export import export_model, steps
from foldserve.models.export.capture.graph_copy import copied
from foldserve.models.export.cli.command import main
from foldserve.models.export.cli.summary import table
from foldserve.models.export.verify.other_order import OtherOrder
from foldserve.models.export.verify.tolerance import tolerance_from
from foldserve.models.export.writers.torchscript_writer import to_torchscript
from tests.models.export.support import Fn


class Two(nn.Module):
    """A plain output and, behind a layer, one that cancels: adding and taking away `lost` costs its digits."""

    def __init__(self, lost):
        super().__init__()
        self.plain, self.layer, self.lost = nn.Linear(4, 3), nn.Linear(4, 3), lost

    def forward(self, x):
        return {"plain": self.plain(x), "poor": (self.layer(x) + self.lost) - self.lost}


def export(module, tmp_path, **options):
    return export_model(module.eval(), (torch.randn(4, 4),), tmp_path, name="m", **options)


def test_a_network_that_float32_cannot_keep_two_digits_of_is_refused_with_the_layer(tmp_path):
    # 2**-24 * 1e5 = 6e-3: float32 keeps two digits of "poor", and twenty times that is no tolerance.
    with pytest.raises(
        NotCapturable,
        match=r"ill-conditioned.* in output 'poor', first at sub_3 \(aten.sub\).*--tolerance poor=",
    ):
        export(Two(1e5), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_tolerance_by_name_is_for_that_output_alone(tmp_path):
    outputs = export(Two(1e5), tmp_path, tolerance={"poor": 0.2}).report["parity"]["onnx"]["outputs"]
    assert (outputs["plain"]["tolerance"], outputs["poor"]["tolerance"]) == (1e-4, 0.2)
    assert outputs["plain"]["max_rel"] < 1e-5 < outputs["poor"]["max_rel"] < 0.2


def test_each_output_has_twenty_times_its_own_error(tmp_path):
    # 2**-24 * 1e3 = 6e-5 of values of about 1; the caller gives no tolerance.
    parity = export(Two(1e3), tmp_path).report["parity"]["torchscript"]
    assert parity["outputs"]["plain"]["tolerance"] == 1e-4
    assert 2e-4 < parity["outputs"]["poor"]["tolerance"] == parity["tolerance"] <= 1e-2


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_neighbour_of_few_digits_hides_no_fault(precision, tmp_path, monkeypatch):
    def wrong(graph_module):
        weight = next(n for n in graph_module.graph.nodes if n.op == "get_attr" and "plain" in str(n.target))
        name = str(weight.target).rpartition(".")[2]
        changed = copied(graph_module)
        value = getattr(changed.plain, name).detach() * 1.002
        delattr(changed.plain, name)
        changed.plain.register_buffer(name, value)
        return to_torchscript(changed)

    monkeypatch.setattr(steps, "to_torchscript", wrong)
    lost = {"fp32": 1e3, "fp16": 1.0}[precision]
    with pytest.raises(
        ParityFailed, match=r"the TorchScript file .*( output 'plain'|: plain \(aten.linear\))"
    ):
        export(Two(lost), tmp_path, precision=precision)


@pytest.mark.parametrize(
    ("tolerance", "told"),
    [
        ({"z": 0.1}, "given for 'z', which is no output of the network; expected one of 'plain', 'poor'"),
        ({"poor": 0}, "'poor' is 0; expected a number above 0 and below 1"),
        ({"poor": math.nan}, "'poor' is nan"),
        (1.0, "'plain' is 1.0; .* a file of zeros is off by 1"),
        ("0.1", "'plain' is '0.1'"),
        (True, "'plain' is True"),
    ],
)
def test_a_tolerance_that_is_none_is_refused(tolerance, told, tmp_path):
    with pytest.raises(BadExample, match=told):
        export(Two(1.0), tmp_path, tolerance=tolerance)


def test_the_command_line_takes_a_tolerance_for_one_or_for_all(tmp_path, capsys):
    assert tolerance_from([]) is None
    assert tolerance_from(["a=0.1", "b=c=0.2"]) == {"a": 0.1, "b=c": 0.2}
    assert main(["mlp", "--repository", str(tmp_path), "--tolerance", "0.03"]) == 0
    assert "tolerance 3e-02, rows" in capsys.readouterr().out
    for wrong in (["x"], ["y="], ["0.1", "y=0.2"]):
        options = [word for one in wrong for word in ("--tolerance", one)]
        assert main(["mlp", "--repository", str(tmp_path), *options]) == 2
        assert "foldserve export: --tolerance" in capsys.readouterr().err


class Labels(nn.Module):
    """The label of the larger of two scores that differ by `margin` of a row's sum."""

    def __init__(self, margin):
        super().__init__()
        self.layer, self.margin = nn.Linear(4, 1), margin

    def forward(self, x):
        y = self.layer(x)
        return torch.cat([y, y * (1 + self.margin)], 1).argmax(1)


def test_labels_must_all_agree_where_there_is_no_near_tie(tmp_path, monkeypatch):
    parity = export(Labels(0.1), tmp_path).report["parity"]["onnx"]["outputs"]["y"]
    assert parity == {"max_abs": 0.0, "max_rel": 0.0, "tolerance": 0.0}

    class Other(Labels):
        def forward(self, x):
            return 1 - super().forward(x)

    wrong = export(Other(0.1), tmp_path / "other").torchscript_path.read_bytes()
    monkeypatch.setattr(steps, "save_torchscript", lambda _, path: path.write_bytes(wrong))
    with pytest.raises(ParityFailed, match=r"\d+% of the elements differ that are no near ties"):
        export(Labels(0.1), tmp_path / "again")


class Ties(nn.Module):
    """Which of two layers scores higher; in half of the columns they have the same weights but for `apart`."""

    def __init__(self, apart):
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(4, 8)
        with torch.no_grad():
            self.two.weight[:4] = self.one.weight[:4] * (1 + apart)
            self.two.bias[:4] = self.one.bias[:4]

    def forward(self, x):
        return self.one(x) > self.two(x)


def test_a_network_whose_answers_are_mostly_near_ties_is_refused(tmp_path):
    with pytest.raises(NotCapturable, match=r"\d\d% of the elements of output 'y' hang on how bf16 rounds"):
        export(Ties(1e-3), tmp_path, precision="bf16")


def test_doubtful_elements_may_come_out_either_way_and_the_server_is_told_their_share(tmp_path):
    class Few(Ties):
        def forward(self, x):
            return torch.cat([super().forward(x)[:, 3:4], x.repeat(1, 8) > 0], 1)

    # 1e-6 apart: twenty roundings of float32 are 1.2e-6, so some of the first column are near ties.
    parity = export(Few(1e-6), tmp_path).report["parity"]["onnx"]["outputs"]["y"]
    assert parity["max_rel"] == 0.0
    assert 0 < parity["tolerance"] <= 1 / 33


def test_an_output_of_nan_alone_is_said(tmp_path):
    result = export(Fn(lambda x: (x * 0 - 1).sqrt()), tmp_path)
    note = "every value that was tried is NaN or infinite, so nothing but that was compared"
    assert result.report["parity"]["onnx"]["outputs"]["y"]["note"] == note
    assert table(result).count(f"y: {note}") == 1


class Stiff(nn.Module):
    """A network that multiplies roundings: float64 keeps ten digits of it, and two orders of summation differ."""

    def __init__(self, times):
        super().__init__()
        self.conv, self.norm, self.times = nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4), times
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        y = self.norm(self.conv(x.unsqueeze(2)))
        return torch.sin(y * self.times)


def test_the_gate_of_the_fold_asks_for_no_more_digits_than_float64_has(tmp_path):
    # 2**-53 * 2e6 = 2e-10: beyond 1e-10, and float64 in another order of summation is as far off.
    report = export(Stiff(2e6), tmp_path, tolerance=0.9).report["parity"]["fold_float64"]
    assert 1e-10 < report["max_rel"] <= report["tolerance"] <= 1e-7
    assert export(Stiff(10.0), tmp_path / "2").report["parity"]["fold_float64"]["tolerance"] == 1e-10


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(64, 5), nn.Conv1d(64, 5, 3), nn.ConvTranspose1d(64, 5, 3), nn.MultiheadAttention(64, 4)],
    ids=lambda layer: type(layer).__name__,
)
def test_another_order_of_summation_moves_an_answer_by_some_roundings_and_no_more(layer):
    layer = layer.double().eval()
    x = torch.randn(3, 64, 64, dtype=torch.float64)
    call = (lambda: layer(x, x, x)[0]) if isinstance(layer, nn.MultiheadAttention) else (lambda: layer(x))
    with torch.no_grad():
        want = call()
        with OtherOrder():
            got = call()
    assert 0 < float((got - want).abs().max()) < 64 * 2**-52
