"""Runs that leave something behind in a network, and runs that do not."""

import pytest
import torch
from torch import Tensor, nn

from foldserve.models.export.network.fresh import FreshRuns
from tests.models.export.support import ConvNorm, pictures


class Leaves(nn.Module):
    """Leaves something of a kind behind in each run, or nothing."""

    def __init__(self, leave=lambda self, x: None):
        super().__init__()
        self.layer = nn.Sequential(ConvNorm())
        self.register_buffer("table", torch.zeros(3))
        self.tables = {"a": [torch.zeros(3)], "b": (1, "c", None)}
        self.count, self.last = 0, None
        self._leave = leave

    def forward(self, x: Tensor) -> Tensor:
        self._leave(self, x)
        return self.layer(x)


def _count(self, x):
    self.count += 1


def _keep(self, x):
    self.last = x


def _write_to_a_buffer(self, x):
    self.table.add_(1)


def _write_past_the_version_counter(self, x):
    self.table.data.add_(1)


def _write_deep_inside(self, x):
    self.tables["a"][0].add_(1)


def _append(self, x):
    self.tables["a"].append(1)


def _name_another(self, x):
    self.tables["d"] = 1


def _write_to_a_part(self, x):
    self.layer[0].seen = x.shape


def _delete(self, x):
    del self.last


def _replace_a_part(self, x):
    self.layer[0] = nn.Identity()


def _add_a_part(self, x):
    self.other = nn.Identity()


def _hook(self, x):
    self.layer.register_forward_hook(lambda *_: None)


def _other_type(self, x):
    self.count = 0.0


@pytest.mark.parametrize(
    "leave",
    [
        _count,
        _keep,
        _write_to_a_buffer,
        _write_past_the_version_counter,
        _write_deep_inside,
        _append,
        _name_another,
        _write_to_a_part,
        _delete,
        _replace_a_part,
        _add_a_part,
        _hook,
        _other_type,
    ],
)
def test_whatever_a_run_leaves_behind_the_next_one_finds_nothing_of_it(leave):
    network = Leaves(leave).eval()
    runs = FreshRuns(network)
    used = runs.module()
    used(pictures())
    fresh = runs.module()
    assert fresh is not used
    assert vars(fresh).keys() == vars(network).keys()
    assert torch.equal(fresh.table, torch.zeros(3))
    assert (fresh.count, fresh.last, fresh.tables["b"]) == (0, None, (1, "c", None))
    assert type(fresh.count) is int
    assert torch.equal(torch.stack(fresh.tables["a"]), torch.zeros(1, 3))
    assert fresh.tables.keys() == {"a", "b"}
    assert vars(fresh.layer[0]).keys() == vars(network.layer[0]).keys()
    assert not fresh.layer._forward_hooks


def test_a_copy_serves_again_where_a_run_leaves_nothing_behind():
    def puts_back(self, x):
        self.count = self.count + 1 - 1
        self.tables["a"] = [torch.zeros(3)]

    runs = FreshRuns(Leaves(puts_back).eval())
    used = runs.module()
    used(pictures())
    assert runs.module() is used


def test_a_copy_with_an_object_that_may_hide_something_is_not_used_again():
    class Memory:
        pass

    network = Leaves().eval()
    network.memory = Memory()
    runs = FreshRuns(network)
    assert runs.module() is not runs.module()
