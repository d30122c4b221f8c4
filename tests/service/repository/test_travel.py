"""Which models' tensors fit into an API server's memory at all."""

from pathlib import Path

import pytest
import yaml

from foldserve.service.repository.index import scan_repository
from foldserve.service.repository.travel import without_what_cannot_travel

ROW = [-1, 3, 8, 8]


def stated(folder: Path, name: str, outputs: list[int | str]) -> None:
    """A TorchScript file that is never opened, with a signature of rows of 768 bytes."""
    (folder / name / "1").mkdir(parents=True)
    (folder / name / "1" / "model.pt").write_bytes(b"x")
    signature = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": ROW}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": outputs}],
    }
    (folder / name / "config.yaml").write_text(
        yaml.safe_dump({"backend": "torchscript", "signature": signature})
    )


@pytest.mark.parametrize(("arena_bytes", "served"), [(1 << 20, "afd"), (4096, "ad"), (1024, "")])
def test_models_of_which_no_row_fits_with_its_answer_are_broken_and_say_what_would_do(
    tmp_path: Path, arena_bytes: int, served: str
) -> None:
    stated(tmp_path, "a", [-1, 4])
    stated(tmp_path, "d", [-1, "length"])
    stated(tmp_path, "f", [-1, 4000])
    found = without_what_cannot_travel(scan_repository(tmp_path), arena_bytes)
    assert {entry.name for entry in found.entries} == set(served)
    for problem in found.problems():
        assert "one row of its inputs takes 768 bytes and its answer" in problem
        assert f"an API server has {arena_bytes}; expected room for a row" in problem
        assert "set a larger --arena-bytes" in problem
    assert len(found.problems()) == 3 - len(served)
