"""The exports that several tests look at: made once per session, on first use, and only read."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.export import ExportResult, export_model
from models.registry import resolve
from tests.models.support import randomise_norms

# Trained weights come with their own statistics.
TRAINED = {"digits", "efficientnet_lite0"}


@pytest.fixture(autouse=True)
def _same_numbers_each_time():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ExportResult]:
    """Export a network of models/ by name, norms randomised, into one repository; once per session."""
    repository: Path = tmp_path_factory.mktemp("repository")
    done: dict[str, ExportResult] = {}

    def export(name: str) -> ExportResult:
        if name not in done:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                target = resolve(name)
            module = target.module if name in TRAINED else randomise_norms(target.module)
            done[name] = export_model(
                module,
                target.example_inputs,
                repository,
                name=name,
                dynamic_axes=target.dynamic_axes,
                input_names=target.input_names,
                source=target.source,
            )
        return done[name]

    return export
