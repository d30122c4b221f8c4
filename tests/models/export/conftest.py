"""The exports that several tests look at: made once per session, on first use, and only read."""

import functools
import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.onnx._internal.exporter import _registration

from foldserve.models.export import ExportResult, export_model
from foldserve.models.registry import resolve
from tests.models.support import randomise_norms

# Trained weights come with their own statistics.
TRAINED = {"digits", "efficientnet_lite0"}

# About what the imports of a first export leave behind; a test leaves some thousand.
_MANY_OBJECTS = 50_000


@pytest.fixture(autouse=True, scope="session")
def _translations_read_once():
    """torch.onnx reads the source of all its translations anew in each export; they are the same each time."""
    with pytest.MonkeyPatch.context() as patch:
        read = functools.cache(_registration.onnxscript_apis.get_torchlib_ops)
        patch.setattr(_registration.onnxscript_apis, "get_torchlib_ops", read)
        yield


@pytest.fixture(autouse=True)
def _libraries_are_no_garbage():
    """Imported libraries are gone through once, and not in each export: as a program does that exports many."""
    if len(gc.get_objects()) > _MANY_OBJECTS:
        gc.collect()
        gc.freeze()


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
