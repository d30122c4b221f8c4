"""config.yaml: every key, every default, every problem at once."""

import re
from pathlib import Path
from typing import Any

import pytest

from foldserve.service.backends import SessionOptions
from foldserve.service.errors import ConfigError
from foldserve.service.repository.model_config import (
    KEYS,
    VersionPolicy,
    parse_model_config,
    read_model_config,
)

ALL_KEYS = """
backend: torchscript
max_batch_size: 16
max_queue_delay_ms: 2.5
batch_buckets: [1, 4, 16]
queue: {max_rows: 100, max_bytes: 4096, timeout_ms: 250}
instances: 2
version_policy: [3, 1]
warmup: false
session:
  threads: 3
  cuda_graphs: false
  tf32: true
  nhwc: true
  memory_limit_bytes: 1000000000
  providers: [CUDAExecutionProvider, {CPUExecutionProvider: {arena: 1}}]
signature:
  inputs: [{name: x, datatype: FP32, shape: [-1, 4]}]
  outputs: [{name: y, datatype: INT64, shape: [-1]}]
"""


def test_no_file_means_the_defaults(tmp_path: Path) -> None:
    config = read_model_config(tmp_path / "config.yaml", "m")
    assert (config.backend, config.max_batch_size, config.signature) == (None, None, None)
    assert (config.max_queue_delay_s, config.batch_buckets, config.instances) == (0.0, (), 1)
    assert (config.queue.max_rows, config.queue.max_bytes, config.queue.timeout_s) == (
        1024,
        256 * 2**20,
        30.0,
    )
    assert config.version_policy == VersionPolicy("latest", 1)
    assert config.warmup is True
    assert config.session == SessionOptions(None, (), cuda_graphs=True, tf32=False, nhwc=False)
    assert config.session.memory_limit_bytes is None


@pytest.mark.parametrize(
    ("given", "device", "instances"),
    [({}, "cpu", 1), ({}, "cuda:1", 2), ({"instances": 1}, "cuda:0", 1), ({"instances": 3}, "cuda:0", 3)],
)
def test_gpu_has_two_instances_where_the_file_does_not_say(
    given: dict[str, int], device: str, instances: int
) -> None:
    assert parse_model_config(given, "c").on(device).instances == instances


def test_every_key_is_read_and_milliseconds_become_seconds(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(ALL_KEYS)
    config = read_model_config(path, "m")
    assert config.backend == "torchscript"
    assert config.max_batch_size == 16
    assert config.max_queue_delay_s == 0.0025
    assert config.batch_buckets == (1, 4, 16)
    assert (config.queue.max_rows, config.queue.max_bytes, config.queue.timeout_s) == (100, 4096, 0.25)
    assert config.instances == 2
    assert config.version_policy == VersionPolicy("specific", versions=("3", "1"))
    assert config.warmup is False
    assert config.session.threads == 3
    assert (config.session.cuda_graphs, config.session.tf32, config.session.nhwc) == (False, True, True)
    assert config.session.memory_limit_bytes == 10**9
    assert config.session.providers == (("CUDAExecutionProvider", {}), ("CPUExecutionProvider", {"arena": 1}))
    assert config.signature is not None
    assert str(config.signature.inputs[0]) == "x FP32 [-1, 4]"


@pytest.mark.parametrize(
    ("given", "policy"),
    [
        ("latest", VersionPolicy("latest")),
        ("all", VersionPolicy("all")),
        ({"latest": 3}, VersionPolicy("latest", count=3)),
        ([2], VersionPolicy("specific", versions=("2",))),
    ],
)
def test_version_policy_has_four_forms(given: Any, policy: VersionPolicy) -> None:
    assert parse_model_config({"version_policy": given}, "c").version_policy == policy


def test_value_is_written_as_in_the_settings_of_the_server() -> None:
    config = parse_model_config({"queue": {"max_bytes": "1MiB"}, "warmup": "off", "instances": "3"}, "c")
    assert (config.queue.max_bytes, config.warmup, config.instances) == (2**20, False, 3)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"backend": "tensorflow"}, "backend is 'tensorflow'; expected one of onnxruntime, torchscript"),
        ({"backend": "onnx"}, "expected one of onnxruntime, torchscript; did you mean onnxruntime?"),
        ({"max_batch_size": -1}, "max_batch_size is -1; expected a whole number of rows"),
        ({"max_batch_size": 0, "batch_buckets": [1]}, "batch_buckets end with 1 and max_batch_size is 0"),
        (
            {
                "signature": {
                    "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4]}],
                    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}],
                }
            },
            "signature: tensor 'x' has shape [1, 4]; dim 0 counts the rows and must be -1; for a model that does not "
            "count rows, set `max_batch_size: 0`",
        ),
        ({"max_batch_size": True}, "max_batch_size is True; expected a whole number of rows"),
        ({"max_queue_delay_ms": -1}, "max_queue_delay_ms is -1; expected a number of milliseconds"),
        (
            {"max_queue_delay_ms": float("nan")},
            "max_queue_delay_ms is nan; expected a number of milliseconds",
        ),
        ({"batch_buckets": [4, 1]}, "batch_buckets is [4, 1]; expected ascending"),
        ({"batch_buckets": 4}, "batch_buckets is 4; expected ascending"),
        ({"queue": {"timeout_ms": 0}}, "queue.timeout_ms is 0; expected a number of milliseconds from 1"),
        ({"queue": 7}, "queue is 7; expected a mapping"),
        ({"version_policy": []}, "version_policy is []; expected latest, all"),
        ({"warmup": "maybe"}, "warmup is 'maybe'; expected true or false"),
        ({"session": {"tf32": 2}}, "session.tf32 is 2; expected true or false"),
        (
            {"session": {"memory_limit_bytes": "2GB"}},
            "session.memory_limit_bytes is '2GB'; expected a number of bytes",
        ),
        ({"session": {"providers": "CPU"}}, "session.providers is 'CPU'; expected a list"),
        ({"signature": {"inputs": []}}, "each a list of {name, datatype, shape}: 'outputs' is missing"),
        (
            {"signature": {"inputs": [{"name": "x", "datatype": "FP31", "shape": [-1]}], "outputs": []}},
            "{name, datatype, shape}: datatype 'FP31' cannot be served",
        ),
        ({"max_batchsize": 4}, "'max_batchsize' is not a key; did you mean max_batch_size?"),
        (
            {"queue": {"priority_levels": 2, "default_priority_level": 3}},
            "queue.default_priority_level is 3 and queue.priority_levels is 2; expected a level from 1 to 2",
        ),
        ({"queue": {"priority_levels": 9}}, "a whole number from 1 to 8"),
        ({"queue": {"priority_age_ms": 0}}, "a number of milliseconds from 1"),
        ({"queue": {"rows": 4}}, "'queue.rows' is not a key; did you mean queue.max_rows?"),
        ({"zzz": 4}, "'zzz' is not a key; expected one of"),
        ([1], "holds a list; expected a mapping"),
        ({"max_batch_size": 8, "batch_buckets": [1, 4]}, "batch_buckets end with 4 and max_batch_size is 8"),
        ({"max_batch_size": 8, "queue": {"max_rows": 4}}, "queue.max_rows is 4, less than max_batch_size 8"),
    ],
)
def test_bad_value_is_told_with_what_was_expected(given: Any, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_model_config(given, "config.yaml of model m")
    (told,) = caught.value.problems
    assert told.startswith("config.yaml of model m")
    assert problem in told


def test_with_max_batch_size_0_a_signature_may_have_any_shapes() -> None:
    given = {
        "max_batch_size": 0,
        "signature": {
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": []}],
        },
    }
    signature = parse_model_config(given, "c").signature
    assert signature is not None
    assert not signature.counts_rows
    assert [spec.shape for spec in (*signature.inputs, *signature.outputs)] == [(1, 4), ()]


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_model_config({"instances": 0, "warmup": 2, "color": "red"}, "c")
    assert len(caught.value.problems) == 3


def test_file_that_is_not_yaml_is_told_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("queue: {")
    with pytest.raises(ConfigError, match=r"config.yaml of model m is not YAML: .*line 1"):
        read_model_config(path, "m")


def test_every_key_is_documented_and_no_other() -> None:
    text = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    table = text.split("### config.yaml")[1].split("\n## ")[0].split("\n### ")[0]
    assert set(re.findall(r"^\| `([\w.]+)` \|", table, re.MULTILINE)) == {key.name for key in KEYS}
