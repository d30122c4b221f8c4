"""Sessions on a real GPU: what the fakes of the other tests stand for."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.backends import Session, SessionOptions, Workload, load_session
from foldserve.service.backends.base import OutOfMemory
from foldserve.service.backends.devices import choose_devices
from foldserve.service.backends.onnxruntime.cpu_session import read_signature
from foldserve.service.errors import ConfigError
from tests.service.cuda_fakes import rows_of
from tests.service.repositories import WEIGHT, save_linear, save_lookup, save_onnx, save_scripted

pytestmark = pytest.mark.gpu

BUCKETS = (1, 2, 4, 8)
# Sums of four products of FP32: a GPU may add them in another order.
CLOSE: Any = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module", autouse=True)
def device() -> str:
    try:
        return choose_devices("cuda").names[0]
    except ConfigError as error:
        pytest.skip(str(error))


def load(
    path: Path, device: str, options: SessionOptions | None = None, workload: Workload | None = None
) -> Session:
    return load_session(
        "onnxruntime",
        path,
        read_signature(path),
        device,
        options or SessionOptions(threads=1),
        workload or Workload(BUCKETS),
    )


def check_linear(session: Session, sizes: Sequence[int]) -> None:
    for seed, rows in enumerate(sizes):
        x = rows_of(rows, seed)
        np.testing.assert_allclose(session.run({"x": x})["y"], x @ WEIGHT, **CLOSE)


@pytest.mark.parametrize("graphs", [True, False])
def test_every_batch_has_its_own_answers_with_graphs_and_without(
    tmp_path: Path, device: str, graphs: bool
) -> None:
    session = load(save_linear(tmp_path / "m.onnx"), device, SessionOptions(cuda_graphs=graphs))
    assert session.notes[0].startswith(
        "CUDA graphs for batches of 1, 2, 4, 8 rows" if graphs else "CUDA graphs are not used: "
    )
    check_linear(session, [8, 1, 8, 4, 2, 2, 8, 1, 5, 9])


def test_convolutions_answer_as_on_the_cpu_in_every_bucket_when_all_are_recorded(
    tmp_path: Path, device: str
) -> None:
    """cuDNN plans a convolution anew for each size: a graph must outlive the plan that it was recorded with."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((16, 3, 3, 3)).astype(np.float32),
        "b": rng.standard_normal(16).astype(np.float32),
        "v": rng.standard_normal((8, 16, 3, 3)).astype(np.float32),
    }
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3, 24, 24])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 8, 20, 20])
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "v"], ["y"]),
    ]
    path = save_onnx(tmp_path / "m.onnx", nodes, [x], [y], weights)
    on_gpu, on_cpu = load(path, device), load(path, "cpu")
    assert on_gpu.notes[0].startswith("CUDA graphs for batches of 1, 2, 4, 8 rows")
    for rows in [1, 8, 2, 4, 8, 1, 3, 2]:
        given = {"x": rng.standard_normal((rows, 3, 24, 24)).astype(np.float32)}
        want = on_cpu.run(given)["y"]
        assert np.abs(on_gpu.run(given)["y"] - want).max() < 1e-4 * np.abs(want).max()


def test_rows_gathered_in_page_locked_memory_are_run(tmp_path: Path, device: str) -> None:
    session = load(save_linear(tmp_path / "m.onnx"), device)
    buffers = session.host_buffers(8)
    assert buffers is not None
    for seed in range(3):
        buffers["x"][:4] = x = rows_of(4, seed)
        np.testing.assert_allclose(session.run({"x": buffers["x"][:4]})["y"], x @ WEIGHT, **CLOSE)


def test_two_sessions_run_side_by_side_each_on_the_thread_that_made_it(tmp_path: Path, device: str) -> None:
    path = save_linear(tmp_path / "m.onnx")
    ready = [threading.Event(), threading.Event()]
    go = threading.Event()
    errors: list[BaseException] = []

    def live(number: int) -> None:
        try:
            session = load(path, device)
            ready[number].set()
            assert go.wait(60)
            check_linear(session, [1 + (number + turn) % 8 for turn in range(300)])
        except BaseException as error:
            errors.append(error)
            ready[number].set()

    threads = [threading.Thread(target=live, args=(number,)) for number in range(2)]
    for thread, event in zip(threads, ready, strict=True):
        thread.start()  # the next loads when this one has: graphs are recorded one model at a time
        assert event.wait(120)
    go.set()
    for thread in threads:
        thread.join()
    assert not errors


TYPES = [
    (TensorProto.FLOAT16, np.float16),
    (TensorProto.BOOL, np.bool_),
    (TensorProto.UINT8, np.uint8),
    (TensorProto.INT32, np.int32),
    (TensorProto.INT64, np.int64),
]


@pytest.mark.parametrize(("kind", "dtype"), TYPES)
def test_datatypes_arrive_as_they_are(
    tmp_path: Path, device: str, kind: int, dtype: type[np.generic]
) -> None:
    x, y = (helper.make_tensor_value_info(name, kind, ["rows", 3]) for name in ("x", "y"))
    nodes = [
        helper.make_node("Concat", ["x", "x"], ["xx"], axis=1),
        helper.make_node("Slice", ["xx", "a", "b", "c"], ["y"]),
    ]
    ends = {"a": np.array([1]), "b": np.array([4]), "c": np.array([1])}
    session = load(save_onnx(tmp_path / "m.onnx", nodes, [x], [y], ends), device)
    for scale in (1, 3):
        rows = (np.arange(12).reshape(4, 3) * scale).astype(dtype)
        np.testing.assert_array_equal(session.run({"x": rows})["y"], np.roll(rows, -1, axis=1))


def test_input_that_the_cpu_reads_is_read_anew_for_every_batch(tmp_path: Path, device: str) -> None:
    """`by` says how often rows are repeated: a shape, which onnxruntime works out on the CPU."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 2])
    by = helper.make_tensor_value_info("by", TensorProto.INT64, ["rows"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", "n"])
    nodes = [
        helper.make_node("Slice", ["by", "zero", "one", "zero"], ["first"]),
        helper.make_node("Concat", ["one", "first"], ["times"], axis=0),
        helper.make_node("Tile", ["x", "times"], ["y"]),
    ]
    constants = {"zero": np.array([0]), "one": np.array([1])}
    session = load(save_onnx(tmp_path / "m.onnx", nodes, [x, by], [y], constants), device)
    assert "not used" in session.notes[0]
    for times in (1, 3, 2):
        rows = np.float32([[1, 2], [3, 4]])
        found = session.run({"x": rows, "by": np.array([times, times])})["y"]
        np.testing.assert_array_equal(found, np.tile(rows, (1, times)))


def test_rows_of_any_length_are_run(tmp_path: Path, device: str) -> None:
    session = load(save_lookup(tmp_path / "m.onnx"), device)
    assert session.host_buffers(1) is None
    for length in (1, 3, 2):
        index = np.arange(2 * length).reshape(2, length)
        np.testing.assert_array_equal(
            session.run({"index": index})["y"], np.stack([2 * index, 2 * index + 1], axis=-1)
        )


def test_batch_without_room_is_told_and_smaller_ones_run(tmp_path: Path, device: str) -> None:
    """Rows become 4 MiB each on their way; 64 MiB of arena have room for a few."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 1])
    nodes = [
        helper.make_node("Expand", ["x", "wide"], ["w"]),
        helper.make_node("Exp", ["w"], ["e"]),
        helper.make_node("ReduceMax", ["e"], ["y"], axes=[1], keepdims=1),
    ]
    path = save_onnx(tmp_path / "m.onnx", nodes, [x], [y], {"wide": np.array([1, 1 << 20])})
    options = SessionOptions(threads=1, cuda_graphs=False, memory_limit_bytes=64 << 20)
    session = load(path, device, options, Workload((1, 256)))
    with pytest.raises(OutOfMemory):
        session.run({"x": np.zeros((256, 1), np.float32)})
    np.testing.assert_allclose(session.run({"x": np.float32([[1]])})["y"], [[np.e]], rtol=1e-5)


def test_tf32_is_off_unless_asked_for(tmp_path: Path, device: str) -> None:
    size = 512
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((size, size)).astype(np.float32)
    path = save_linear(tmp_path / "m.onnx", weight)
    x = rng.standard_normal((8, size)).astype(np.float32)
    want = x.astype(np.float64) @ weight.astype(np.float64)

    def error(options: SessionOptions) -> float:
        return float(np.abs(load(path, device, options).run({"x": x})["y"] - want).max() / np.abs(want).max())

    # FP32 has 23 bits of mantissa, TF32 has 10: a relative error of about 2^-11 in each factor.
    assert error(SessionOptions(threads=1)) < 1e-5
    assert 1e-5 < error(SessionOptions(threads=1, tf32=True)) < 1e-2


def test_torchscript_answers_alike(tmp_path: Path, device: str) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} is built without CUDA")
    x, y = TensorSpec("x", "FP32", (-1, 4)), TensorSpec("y", "FP32", (-1, 3))
    options: Any = SessionOptions(threads=1)
    session = load_session(
        "torchscript", save_scripted(tmp_path), Signature((x,), (y,)), device, options, Workload(BUCKETS)
    )
    check_linear(session, [8, 1, 8, 3, 9])
