"""artifact/labels.py: names for the columns of the output, in the manifest, and as many as there are columns."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from foldserve.models.errors import BadLabels
from foldserve.models.export import export_model
from foldserve.models.export.artifact.labels import check_labels, read_labels
from foldserve.models.export.cli.command import main
from foldserve.models.registry import resolve
from foldserve.service.artifact.manifest import TensorEntry, read_manifest

LABELS = ("circle", "square", "triangle")


@pytest.mark.parametrize(
    "text",
    [
        "circle\nsquare\ntriangle\n",
        "\ufeffcircle\r\nsquare \r\ntriangle",
        '["circle", "square", "triangle"]',
        '{"0": "circle", "2": "triangle", "1": "square"}',
        '{"0": ["n1", "circle"], "1": ["n2", "square"], "2": ["n3", "triangle"]}',
    ],
)
def test_labels_are_read_from_lines_and_from_json(tmp_path, text):
    (tmp_path / "labels.txt").write_bytes(text.encode())
    assert read_labels(tmp_path / "labels.txt") == LABELS


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a\n\nb\n", "line 2 of the labels file .* is empty"),
        (b"", "the labels file .* is empty"),
        (b"\n \n", "the labels file .* is empty"),
        (b"\xff\xfe", "no text in UTF-8"),
        (b"[1, 2, 3]", "holds other things than names"),
        (b'{"1": "a", "2": "b", "3": "c"}', "has other keys than 0 to 2"),
        (b'["a", ', "begins like JSON and is none"),
        (None, "cannot be read: No such file or directory; check --labels"),
    ],
)
def test_file_that_holds_no_labels_is_refused(tmp_path, content, says):
    path = tmp_path / "labels.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadLabels, match=says):
        read_labels(path)


def test_labels_of_a_file_are_in_the_manifest(tmp_path, capsys):
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    repository = ["--repository", str(tmp_path / "r"), "--max-batch-size", "2", "--name", "same"]
    example = ["--example", "x:float32:-1x3", "--labels", str(tmp_path / "labels.txt")]
    assert main(["torch.nn:Identity", *repository, *example]) == 0
    assert "labels         3: circle ... triangle" in capsys.readouterr().out
    assert read_manifest(tmp_path / "r" / "same" / "1", "same/1").labels == LABELS


def test_another_number_of_labels_than_of_columns_is_refused_and_nothing_written(tmp_path, capsys):
    (tmp_path / "labels.txt").write_text("circle\nsquare\n")
    arguments = ["torch.nn:Identity", "--repository", str(tmp_path / "r"), "--example", "x:FP32:-1x3"]
    assert main([*arguments, "--labels", str(tmp_path / "labels.txt")]) == 2
    out, err = capsys.readouterr()
    assert "there are 2 labels, and the outputs are y -1x3; expected as many labels as one output has" in err
    assert out == ""
    assert not (tmp_path / "r").exists()


class Two(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x + 1


def test_labels_must_belong_to_one_output_alone(tmp_path: Path):
    with pytest.raises(BadLabels, match="y0 -1x3, y1 -1x3; expected as many labels as one output alone has"):
        export_model(Two(), (torch.zeros(2, 3),), tmp_path, name="m", labels=LABELS)


@pytest.mark.parametrize("wrong", ["abc", (), ("a", 2, "c"), ("a", " ", "c")])
def test_labels_that_are_no_names_are_refused(wrong):
    with pytest.raises(BadLabels, match="expected a name for each column"):
        check_labels(wrong, [TensorEntry(name="y", datatype="FP32", shape=(-1, 3))])


def test_network_of_ours_brings_its_labels():
    labels = resolve("efficientnet_lite0").labels
    assert labels is not None
    assert labels[285] == "Egyptian cat"
    assert resolve("mlp").labels is None
