"""What onnxruntime's CUDA provider is told, and the memory that it may take."""

from typing import Any

import pytest

from foldserve.service.backends import SessionOptions, Workload
from foldserve.service.backends.cuda.options import CudaProviders, cuda_providers, memory_limit

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
GIB = 2**30


def chosen(options: SessionOptions | None = None, limit_bytes: int | None = None) -> CudaProviders:
    return cuda_providers(3, 4096, True, options or SessionOptions(), limit_bytes)


def test_device_stream_and_defaults_go_to_the_provider() -> None:
    plan = chosen()
    (cuda, options), (cpu, _) = plan.providers
    assert (cuda, cpu) == (CUDA, CPU)
    assert options == {
        "device_id": "3",
        "user_compute_stream": "4096",
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "0",
        "prefer_nhwc": "0",
        "enable_cuda_graph": "1",
    }
    assert (plan.ours, plan.graphs) == (True, True)


@pytest.mark.parametrize(
    ("options", "limit_bytes", "key", "value"),
    [
        (SessionOptions(tf32=True), None, "use_tf32", "1"),
        (SessionOptions(nhwc=True), None, "prefer_nhwc", "1"),
        (SessionOptions(), 12345, "gpu_mem_limit", "12345"),
    ],
)
def test_settings_become_options(
    options: SessionOptions, limit_bytes: int | None, key: str, value: str
) -> None:
    assert chosen(options, limit_bytes).providers[0][1][key] == value


def test_graphs_are_asked_for_only_where_they_are_wanted() -> None:
    plan = cuda_providers(0, 1, False, SessionOptions(), None)
    assert plan.providers[0][1]["enable_cuda_graph"] == "0"
    assert (plan.ours, plan.graphs) == (True, False)


def test_operators_options_win_key_by_key() -> None:
    theirs = {"cudnn_conv_algo_search": "EXHAUSTIVE", "use_tf32": 1, "gpu_mem_limit": 7, "sdpa_kernel": 2}
    plan = chosen(SessionOptions(providers=((CUDA, theirs), (CPU, {}))), limit_bytes=5)
    options = plan.providers[0][1]
    assert {key: options[key] for key in theirs} == theirs
    assert options["arena_extend_strategy"] == "kSameAsRequested"
    assert (plan.ours, plan.graphs) == (True, True)


@pytest.mark.parametrize(
    ("providers", "ours", "graphs"),
    [
        (((CUDA, {"enable_cuda_graph": 0}), (CPU, {})), True, False),
        (((CUDA, {"enable_cuda_graph": "True"}), (CPU, {})), True, True),
        (((CUDA, {"user_compute_stream": "77"}), (CPU, {})), False, False),
        (((CUDA, {"device_id": 0}), (CPU, {})), False, False),
        (((CUDA, {"device_id": 3}),), True, True),
        ((("TensorrtExecutionProvider", {"device_id": 3}), (CUDA, {}), (CPU, {})), False, False),
        (((CPU, {}),), False, False),
    ],
)
def test_memory_is_bound_only_where_the_session_runs_on_its_own_stream_and_device(
    providers: tuple[tuple[str, dict[str, Any]], ...], ours: bool, graphs: bool
) -> None:
    plan = chosen(SessionOptions(providers=providers))
    assert (plan.ours, plan.graphs) == (ours, graphs)
    assert [name for name, _ in plan.providers] == [name for name, _ in providers]


def test_other_providers_get_exactly_what_the_operator_says() -> None:
    plan = chosen(SessionOptions(providers=(("TensorrtExecutionProvider", {"a": 1}), (CUDA, {}))))
    assert plan.providers[0] == ("TensorrtExecutionProvider", {"a": 1})


def test_limit_is_three_times_what_the_manifest_measured_and_a_gib() -> None:
    need = Workload((1, 32, 128), weights_bytes=100_000_000, row_bytes=10_000_000)
    assert memory_limit(SessionOptions(), need, any_dims=False) == 3 * (10**8 + 128 * 10**7) + GIB


@pytest.mark.parametrize(
    ("need", "any_dims"),
    [
        (Workload((1, 8)), False),
        (Workload((1, 8), 100, 10), True),
        (Workload((), 100, 10), False),
    ],
)
def test_without_a_measured_need_there_is_no_limit(need: Workload, any_dims: bool) -> None:
    assert memory_limit(SessionOptions(), need, any_dims) is None


@pytest.mark.parametrize("any_dims", [True, False])
def test_operators_limit_wins(any_dims: bool) -> None:
    options = SessionOptions(memory_limit_bytes=5 * GIB)
    assert memory_limit(options, Workload((1, 8), 100, 10), any_dims) == 5 * GIB
