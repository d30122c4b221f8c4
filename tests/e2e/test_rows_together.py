"""An export whose rows belong together, on a real server: it answers as the eager network does, a request at a time."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from foldserve.models.export import export_model
from foldserve.service.commands.inspect import inspect
from tests.e2e.server_process import ServerProcess, serving

pytestmark = pytest.mark.e2e


class BatchNorm(nn.Module):
    """A norm with the statistics of the batch, and one number for the whole: (rows, 3, 6, 6) in."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.norm(self.mix(x))
        return {"y": y, "loss": y.abs().mean()}


class Whole(nn.Module):
    """(channels, height, width) in, a number and a vector out: no dim of rows anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.mix(x)
        return y.sigmoid().mean(), y.mean((1, 2))


EXAMPLES = {"norm": torch.randn(4, 3, 6, 6), "whole": torch.randn(3, 6, 6)}
# Files are held to 1e-4 of the largest value (models/export/verify/tolerance.py); JSON tells a float32 exactly.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"norm": BatchNorm().eval(), "whole": Whole().eval()}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, networks: dict[str, nn.Module]):
    folder = tmp_path_factory.mktemp("repository")
    for name, network in networks.items():
        export_model(network, (EXAMPLES[name],), folder, name=name, rows="together")
    return folder


@pytest.fixture(scope="module")
def server(repository, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(repository, tmp_path_factory.mktemp("server") / "output") as running:
        running.wait_until("/v2/health/ready", 200)
        yield running


def answers(server: ServerProcess, model: str, x: Tensor) -> dict[str, np.ndarray]:
    answer = server.post(f"/predict/{model}", json={"inputs": x.tolist()})
    assert answer.status_code == 200, answer.text
    return {name: np.array(value) for name, value in answer.json()["outputs"].items()}


@pytest.mark.parametrize("rows", [1, 2, 5, 40])
def test_a_request_is_normalised_over_its_own_rows(server, networks, rows):
    x = torch.randn(rows, 3, 6, 6) * rows
    with torch.no_grad():
        want = networks["norm"](x)
    got = answers(server, "norm", x)
    assert got["loss"].shape == ()
    for name, tensor in want.items():
        assert np.abs(got[name] - tensor.numpy()).max() <= TOLERANCE * float(tensor.abs().max())


def test_a_network_without_rows_answers_in_its_own_shapes(server, networks):
    x = torch.randn(3, 6, 6)
    with torch.no_grad():
        number, vector = networks["whole"](x)
    got = answers(server, "whole", x)
    assert (got["y0"].shape, got["y1"].shape) == ((), (4,))
    assert abs(got["y0"] - float(number)) <= TOLERANCE * abs(float(number))
    assert np.abs(got["y1"] - vector.numpy()).max() <= TOLERANCE * float(vector.abs().max())


def test_info_and_inspect_say_that_rows_belong_together(server, repository):
    for model in server.get("/info").json()["models"]:
        (version,) = model["versions"]
        assert (version["max_batch_size"], version["manifest"]["rows"]) == (0, "together")
    out = io.StringIO()
    assert inspect(repository, out) == 0
    assert out.getvalue().count("one request at a time, whose rows belong together") == len(EXAMPLES)
