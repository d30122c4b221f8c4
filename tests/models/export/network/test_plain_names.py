import keyword

import pytest
import torch
from torch import Tensor, fx, nn

from foldserve.models.export import export_model
from foldserve.models.export.network.plain_names import any_names
from foldserve.models.export.writers.torchscript_writer import load_torchscript

NAMES = ["class", "None", "été", "日本", "a b", 'a"b', "a'b", "a\\b", "1", "è", "é"]


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleDict({n: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for n in NAMES})
        self.scales = nn.ParameterDict({n: torch.rand(4) + 1 for n in NAMES})
        for name in NAMES:
            self.register_buffer(name, torch.randn(4))

    def forward(self, größe: Tensor, class_: Tensor) -> dict[str, Tensor]:
        x = größe
        for name in NAMES:
            x = self.parts[name](x) * self.scales[name] + getattr(self, name)
        return {"lambda": x, "été": class_}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_parts_weights_inputs_and_outputs_may_have_any_name(precision, tmp_path):
    network = Parts().eval()
    x = torch.randn(2, 4), torch.randn(2, 4)
    result = export_model(network, x, tmp_path, name="m", precision=precision)
    assert [i["name"] for i in result.report["inputs"]] == ["größe", "class_"]
    assert [o["name"] for o in result.report["outputs"]] == ["lambda", "été"]
    assert result.report["fold"]["folded"] == len(NAMES)
    # 1e-4 is the export's promise in float32; a norm left out or a weight of another part is off by more than 0.1
    tolerance = {"fp32": 1e-4, "fp16": 0.1}[precision]
    got, want = load_torchscript(result.torchscript_path)(*x)[0], network(*x)["lambda"]
    assert float(((got - want).abs().max() / want.abs().max()).detach()) <= tolerance


def test_torch_still_writes_targets_where_any_names_replaces_it():
    # Of torch's private function: a torch that moved it would refuse keywords again, in its own words.
    original = fx.graph._format_target
    assert original("self", "a.b") == "self.a.b"
    with any_names():
        for name in (*keyword.kwlist, "a.b", 'q"'):
            compile(fx.graph._format_target("self", f"parts.{name}.weight"), "<written>", "eval")
    assert fx.graph._format_target is original
