"""Calls of NVIDIA's client over gRPC, and the models that they are for."""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as tritonclient
from tritonclient.utils import InferenceServerException

from tests.e2e.server_process import ServerProcess
from tests.service.repositories import save_exported, save_linear, save_lookup

ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)


def save_repository(folder: Path) -> None:
    """linear in two versions, lookup, mlp; narrow has room for one row in its queue; nothing leaves slow for 20 s,
    unless it holds 64 rows, those of cancelled requests too."""
    for version in ("1", "2"):
        (folder / "linear" / version).mkdir(parents=True)
        save_exported(folder / "linear" / version, version=version)
    config = "version_policy: all\nqueue: {max_rows_per_request: 600000, max_rows: 2000000}\n"
    (folder / "linear" / "config.yaml").write_text(config)
    save_lookup(folder / "lookup" / "1" / "model.onnx")
    save_linear(folder / "mlp" / "1" / "model.onnx", np.ones((10, 5), np.float32))
    (folder / "narrow" / "1").mkdir(parents=True)
    save_exported(folder / "narrow" / "1", name="narrow")
    (folder / "narrow" / "config.yaml").write_text("max_queue_delay_ms: 1500\nqueue: {max_rows: 1}\n")
    (folder / "slow" / "1").mkdir(parents=True)
    save_exported(folder / "slow" / "1", name="slow")
    (folder / "slow" / "config.yaml").write_text("max_batch_size: 64\nmax_queue_delay_ms: 20000\n")


def connected(server: ServerProcess) -> Any:
    """On a connection of its own, which the system gives to either API server."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    return tritonclient.InferenceServerClient(server.grpc, channel_args=options)


def given(array: np.ndarray, name: str = "x") -> Any:
    made = tritonclient.InferInput(name, list(array.shape), "FP32")
    made.set_data_from_numpy(array)
    return made


def refused(call: Callable[[], object]) -> tuple[str, str, dict[str, str]]:
    """Status, text and trailing metadata of a call that fails."""
    with pytest.raises(InferenceServerException) as caught:
        call()
    error = caught.value.__context__  # what the client makes its own of
    assert isinstance(error, grpc.RpcError)
    trailing = dict(error.trailing_metadata())
    return caught.value.status(), caught.value.message(), trailing


def into(future: Future[Any]) -> Callable[[Any, Any], None]:
    return lambda result, error: future.set_exception(error) if error else future.set_result(result)
