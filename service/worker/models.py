"""The models of one worker, as the model table has them: which are loaded, and which are let go of.

The table says what is to be there; changed() brings one row in line with it. Loading and unloading have threads of
their own: the main thread answers the supervisor all the time, and every other model serves on.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from foldserve.service.backends import SessionOptions
from foldserve.service.backends.base import usable_cores
from foldserve.service.ipc.control import CONTROL_STRUCT, ControlMessage
from foldserve.service.ipc.model_table import LEAVING, LOADED, MappedModelTable
from foldserve.service.repository.model_config import ModelConfig
from foldserve.service.repository.model_version import read_version
from foldserve.service.worker.loading_order import load_all
from foldserve.service.worker.model import LoadedModel, WorkerParts

_log = logging.getLogger("foldserve.worker")


class WorkerModels:
    """Used by the main thread alone; the threads that it starts use what is theirs.

    Args:
        load_limit_s: how long one model may take to load; None = no bound.
        per_device: workers that share this one's device.
    """

    def __init__(
        self, worker: WorkerParts, table: MappedModelTable, load_limit_s: float | None, per_device: int
    ) -> None:
        self._worker = worker
        self._table = table
        self._load_limit_s = load_limit_s
        self._per_device = per_device
        self._models: dict[int, LoadedModel] = {}
        self._ending: set[LoadedModel] = set()
        self._free = list(range(worker.transport.dimensions.instances - 1, -1, -1))
        """Free numbers of instances: indices on the scoreboard."""
        # On a GPU, what others do on it may spoil the recording of CUDA graphs.
        self._side_by_side = worker.device == "cpu"
        self._device: contextlib.AbstractContextManager[object] = (
            contextlib.nullcontext() if self._side_by_side else threading.Lock()
        )

    def load_held(self, loaded: Callable[[], None]) -> None:
        """Load whatever the table holds now. loaded: called, in the thread that loads, when all of it is, or failed."""
        models = [model for row in range(self._table.capacity) if (model := self._begin(row)) is not None]
        threading.Thread(target=self._load, args=(models, loaded), daemon=True).start()

    def changed(self, row: int) -> None:
        """The row is not as it was: have the version that it holds, and no other."""
        model = self._models.get(row)
        if model is None:
            if (model := self._begin(row)) is not None:
                threading.Thread(target=self._load, args=([model], None), daemon=True).start()
        elif not self._table.holds(model.key, LOADED) and model not in self._ending:
            self._ending.add(model)
            threading.Thread(target=self._unload, args=(model,), daemon=True).start()

    def _begin(self, row: int) -> LoadedModel | None:
        """The version that a row holds, to be loaded; None when it holds none, or this worker cannot have it."""
        key = self._table.find(row, LOADED)
        version = None if key is None else read_version(self._table, key)
        if key is None or version is None:
            gone = self._table.find(row, LEAVING)
            if gone is not None:
                self._let_go(row, gone.generation)
            return None
        count = version.config.instances
        enough = count <= len(self._free)
        numbers = [self._free.pop() for _ in range(count)] if enough else []
        model = LoadedModel(self._worker, key, version, self._options(version.config), numbers)
        self._models[row] = model
        if not enough:
            problem = (
                f"it wants {count} instances, and the worker has room for {len(self._free)} more; set fewer instances "
                "in its config.yaml, or restart the server with it in the repository"
            )
            _log.error("model %s version %s is not served: %s", key.model, key.version, problem)
            model.cannot_serve(problem)
            self._report(row)
            return None
        return model

    def _load(self, models: Sequence[LoadedModel], loaded: Callable[[], None] | None) -> None:
        with self._device:
            load_all(
                [_Reported(model, self._report) for model in models], self._load_limit_s, self._side_by_side
            )
        if loaded is not None:
            loaded()

    def _unload(self, model: LoadedModel) -> None:
        model.unload()
        self._free += model.numbers
        self._ending.remove(model)
        del self._models[model.key.row]  # before it is let go of: then the row may be another version's
        self._let_go(model.key.row, model.key.generation)
        _log.info("model %s version %s is unloaded", model.key.model, model.key.version)

    def _let_go(self, row: int, generation: int) -> None:
        shared = self._worker.shared
        shared.board.ready[shared.worker, row] = 0  # of this worker's life before
        shared.board.let_go(True, shared.worker, row, generation)
        self._report(row)

    def _report(self, row: int) -> None:
        # Not heard: the supervisor looks at every row from time to time, too.
        self._worker.transport.report(CONTROL_STRUCT.pack(ControlMessage.MODEL_CHANGED, row))

    def _options(self, config: ModelConfig) -> SessionOptions:
        """The model's session options; threads default to a fair part of the cores among the model's instances."""
        options = config.session
        if options.threads is not None:
            return options
        return replace(options, threads=max(1, usable_cores() // (self._per_device * config.instances)))


class _Reported:
    """A model that reports to the supervisor when its loading has ended."""

    def __init__(self, model: LoadedModel, report: Callable[[int], None]) -> None:
        self._model = model
        self._report = report

    def load(self) -> None:
        self._model.load()

    def serve(self) -> None:
        self._model.serve()
        self._report(self._model.key.row)

    def give_up(self, limit_s: float) -> None:
        self._model.give_up(limit_s)
        self._report(self._model.key.row)
