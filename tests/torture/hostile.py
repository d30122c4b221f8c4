"""Folders that lie in a repository beside a good model: strays, half copies, bad manifests, bombs, pipes.

Whatever lies there, the good model is served, the process lives and ends in order, and the log has texts, no traceback.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np

from tests.e2e.server_process import ServerProcess, serving
from tests.service.repositories import save_exported, save_linear
from tests.torture import models
from tests.torture.counts import Counts
from tests.torture.running import end

SERVED_LIMIT_S: Final = 60.0
"""Until the good model serves: its own loading is a second, and nothing else may hold it back."""


def _bomb() -> str:
    """A few lines of YAML that stand for ten thousand million words."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    return "\n".join(lines)


_STRAYS: Final = (
    "lost+found", "__MACOSX", "__pycache__", "System Volume Information", ".ipynb_checkpoints", "incoming/1",
    "empty", "linear/lost+found", "linear/__pycache__", "linear/v2", "linear/0", "linear/001", "linear/2",
    "..data", "-x", "a b", "ä", "x" * 200,
)  # fmt: skip
_MANIFEST_LIES: Final[dict[str, Any]] = {
    "files is a list": {"files": []},
    "files is null": {"files": None},
    "files is a number": {"files": 3},
    "a file is a number": {"files": {"model.onnx": 3}},
    "a file is null": {"files": {"model.onnx": None}},
    "a file has no hash": {"files": {"model.onnx": {}}},
    "a file of a parent": {"files": {"../../../etc/passwd": {"sha256": "0", "size": 1}}},
    "max_batch_size is a word": {"max_batch_size": "abc"},
    "max_batch_size is null": {"max_batch_size": None},
    "max_batch_size is negative": {"max_batch_size": -1},
    "max_batch_size is giant": {"max_batch_size": 10**12},
    "inputs is null": {"inputs": None},
    "an input is a list": {"inputs": [[]]},
    "a dim is a word": {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, "4"]}]},
    "a dim is giant": {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 10**30]}]},
    "a datatype of its own": {"inputs": [{"name": "x", "datatype": "FP7", "shape": [-1, 4]}]},
    "another shape than the file": {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 5]}]},
    "another datatype than the file": {"inputs": [{"name": "x", "datatype": "FP64", "shape": [-1, 4]}]},
    "parity is a list": {"parity": []},
    "parity of a word": {"parity": {"onnx": "good"}},
    "format_version is giant": {"format_version": 10**400},
    "name is a list": {"name": []},
}
_MANIFESTS: Final[dict[str, str | bytes]] = {
    "empty": "",
    "not JSON": "{",
    "a list": "[]",
    "nested": "[" * 100_000,
    "not UTF-8": b"\xff\xfe{}",
    "a long integer": '{"format_version": ' + "9" * 5_000 + "}",
}
_CONFIGS: Final[dict[str, str | bytes]] = {
    "aliases": _bomb() + "\n",
    "a bomb in a key": _bomb() + "\nmax_batch_size: *a9\n",
    "an integer tag": "max_batch_size: !!int abc\n",
    "a float tag": "max_queue_delay_ms: !!float abc\n",
    "no date": "max_batch_size: 2020-13-45\n",
    "no time": "max_batch_size: 2020-01-01T99:59:43Z\n",
    "a long integer": "max_batch_size: " + "9" * 5_000 + "\n",
    "nested lists": "batch_buckets: " + "[" * 20_000 + "\n",
    "nested maps": "session: " + "{a: " * 2_000 + "\n",
    "a python tag": "max_batch_size: !!python/object/apply:os.system ['true']\n",
    "an infinite dim": "signature: {inputs: [{name: x, datatype: FP32, shape: [-1, .inf]}], outputs: []}\n",
    "a tab": "\tmax_batch_size: 1\n",
    "a NUL": "max_batch_size: \0\n",
    "no map": "- 1\n",
    "not UTF-8": b"\xff\xfe\x00",
    "unknown keys": "".join(f"k{i}: 1\n" for i in range(5_000)),
}

Spoil = Callable[[Path], None]


def cases() -> dict[str, Spoil]:
    """By name, what puts each of them into a repository."""
    found: dict[str, Spoil] = {f"stray {name[:30]}": partial(_stray, name=name) for name in _STRAYS}
    for number, (name, lie) in enumerate(_MANIFEST_LIES.items()):
        found[f"manifest: {name}"] = partial(_lie, lie=lie, number=number)
    for number, (name, text) in enumerate(_MANIFESTS.items()):
        found[f"manifest: {name}"] = partial(_manifest, text=text, number=number)
    for number, (name, text) in enumerate(_CONFIGS.items()):
        found[f"config: {name}"] = partial(_config, text=text, number=number)
    found |= {
        "a file in the root": lambda root: _file(root / "notes.txt"),
        "a broken link": lambda root: (root / "link").symlink_to("nowhere"),
        "a link to itself": lambda root: (root / "loop").symlink_to("loop"),
        "a link to the root": lambda root: (root / "up").symlink_to("/"),
        "a model that is a file": lambda root: _file(root / "flat"),
        "a version that is a file": lambda root: _file(root / "half" / "1"),
        "a half copy": _half_copy,
        "an empty model file": lambda root: _file(root / "hollow" / "1" / "model.onnx"),
        "a model that is no model": lambda root: _file(root / "garbage" / "1" / "model.onnx", os.urandom(5_000)),
        "a TorchScript file without a signature": lambda root: _file(root / "script" / "1" / "model.pt", b"PK\3\4"),
        "a fixed batch": _fixed_batch,
        "a pipe for a config": lambda root: _pipe(root / "piped" / "config.yaml"),
        "a pipe for a manifest": lambda root: _pipe(root / "piped2" / "1" / "manifest.json"),
        "a pipe for a model": lambda root: _pipe(root / "piped3" / "1" / "model.onnx"),
        "a device for a config": lambda root: _link(root / "zero" / "config.yaml", "/dev/zero"),
        "a device for a manifest": lambda root: _link(root / "zero2" / "1" / "manifest.json", "/dev/zero"),
        "a folder for a config": lambda root: (root / "folder" / "config.yaml").mkdir(parents=True),
        "a folder for a model": lambda root: (root / "folder2" / "1" / "model.onnx").mkdir(parents=True),
        "a giant reference": _giant_reference,
    }  # fmt: skip
    return found


def beside(folder: Path, names: list[str], counts: Counts) -> None:
    """Serve the good model with these beside it, and count what does not hold."""
    root = folder / "repository"
    models.make_repository(root, ("linear",))
    everything = cases()
    for name in names:
        everything[name](root)
    what = ", ".join(names)[:120]
    with serving(root, folder / "output", "--run-limit", "20") as server:
        began_s = time.monotonic()
        counts.requests += 1
        problem = _served(server)
        counts.answered_in(time.monotonic() - began_s)
        if problem is not None:
            counts.add("broken_promises", f"beside {what}: {problem}")
            return
        counts.verified += 1
        if "Traceback" in server.output:
            at = server.output.index("Traceback")
            counts.add("broken_promises", f"beside {what}: a traceback: {server.output[at:][-200:]}")
        end(server, counts)


def _served(server: ServerProcess) -> str | None:
    """Ask the good model until it answers rightly. Returns: what is wrong, or None."""
    inputs, y = models.inputs_of("linear", 7, 1, 0)
    until_s, seen = time.monotonic() + SERVED_LIMIT_S, "no answer"
    while time.monotonic() < until_s:
        if server.process.poll() is not None:
            return f"the server ended with {server.process.returncode}: {server.output[-200:]}"
        try:
            answer = httpx.post(
                f"{server.url}/predict/linear",
                json={"inputs": inputs["x"].tolist()},
                timeout=5.0,
                verify=False,
            )
        except httpx.HTTPError as error:
            seen = repr(error)
        else:
            seen = f"{answer.status_code} {answer.text[:200]}"
            if answer.status_code == 200:
                return None if answer.json()["outputs"]["y"] == y.tolist() else seen
        time.sleep(0.05)  # between two questions
    return f"not served in {SERVED_LIMIT_S:g} s: {seen}"


def _stray(root: Path, name: str) -> None:
    (root / name).mkdir(parents=True)


def _lie(root: Path, lie: dict[str, Any], number: int) -> None:
    version = root / f"lie-{number}" / "1"
    version.mkdir(parents=True)
    manifest = save_exported(version, f"lie-{number}")
    (version / "manifest.json").write_text(json.dumps({**manifest, **lie}))


def _manifest(root: Path, text: str | bytes, number: int) -> None:
    version = root / f"manifest-{number}" / "1"
    version.mkdir(parents=True)
    save_exported(version, f"manifest-{number}")
    (version / "manifest.json").write_bytes(text if isinstance(text, bytes) else text.encode())


def _config(root: Path, text: str | bytes, number: int) -> None:
    model = root / f"config-{number}"
    save_linear(model / "1" / "model.onnx")
    (model / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())


def _file(path: Path, data: bytes = b"") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _half_copy(root: Path) -> None:
    """What a copy leaves that was broken off: the manifest is there, the model is cut."""
    version = root / "copied" / "1"
    version.mkdir(parents=True)
    save_exported(version, "copied")
    os.truncate(version / "model.onnx", 50)


def _fixed_batch(root: Path) -> None:
    save_linear(root / "fixed" / "1" / "model.onnx", rows=1)


def _pipe(path: Path) -> None:
    """Whoever opens it waits for a writer, for ever."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    if path.name != "model.onnx":
        _model_beside(path)


def _model_beside(path: Path) -> None:
    """A good model in the same folder, so that the file is read because of it."""
    version = path.parent if path.parent.name == "1" else path.parent / "1"
    save_linear(version / "model.onnx")


def _link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    _model_beside(path)


def _giant_reference(root: Path) -> None:
    """Some kilobytes that unpack to 16 million rows: minutes of work in batches of 8."""
    version = root / "giant" / "1"
    version.mkdir(parents=True)
    manifest = save_exported(version, "giant")
    rows = 16_000_000
    reference = version / "reference.npz"
    np.savez_compressed(
        reference, **{"input.x": np.zeros((rows, 4), np.float32), "output.y": np.zeros((rows, 3), np.float32)}
    )
    manifest["files"]["reference.npz"] = {
        "sha256": hashlib.sha256(reference.read_bytes()).hexdigest(),
        "size": reference.stat().st_size,
    }
    (version / "manifest.json").write_text(json.dumps(manifest))
