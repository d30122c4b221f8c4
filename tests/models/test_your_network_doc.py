"""docs/your-network.md is what a new user types: its code does what the page says.

All of it, pasted in its order: tests/e2e/test_your_network_page.py.
"""

import re
import sys
from pathlib import Path

import pytest
import torch

from foldserve.models.export.cli.command import main
from foldserve.models.export.writers.torchscript_writer import load_torchscript
from foldserve.models.registry import resolve

PAGE = Path(__file__).resolve().parents[2] / "docs" / "your-network.md"


@pytest.fixture
def code(tmp_path, monkeypatch):
    """Return the page's Python blocks, in a directory that has the first of them as my_nets.py."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "my_nets.py").write_text(blocks[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield blocks
    sys.modules.pop("my_nets", None)


def test_factory_of_the_page_resolves_and_loads_weights(code):
    target = resolve("my_nets:spectrogram")
    assert target.name == "spectrogram"
    assert target.module(*target.example_inputs).shape == (2, 3)
    torch.save(target.module.state_dict(), "weights.pt")
    again = resolve("my_nets:spectrogram", Path("weights.pt")).module
    assert torch.equal(again.mix.weight, target.module.mix.weight)


def test_export_of_the_page_keeps_rows_and_steps_dynamic_and_leaves_no_norm(code):
    exec(compile(code[1], str(PAGE), "exec"), {})
    scripted = load_torchscript(Path("repository/spectrogram/1/model.pt"))
    x = torch.randn(5, 17, 40)
    assert scripted(x).shape == (5, 3)
    assert "batch_norm" not in str(scripted.inlined_graph)


def test_table_of_an_fp16_export_is_the_one_that_the_page_shows(tmp_path, monkeypatch, capsys):
    # What rounds or takes time differs from machine to machine; labels, sizes in memory and signature do not.
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```\n\$ foldserve (export digits .*?)```", PAGE.read_text(), re.DOTALL)
    command, *shown = block.splitlines()
    assert main(command.split()[1:]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in printed] == [line.split("  ")[0] for line in shown]
    exact = ("network", "written", "inputs", "outputs", "batch norms", "precision", "memory")
    assert [x for x in printed if x.startswith(exact)] == [x for x in shown if x.startswith(exact)]
