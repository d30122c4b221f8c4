"""The other projects' servers. Each gets an environment of its own under build/peers, made on request."""

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.serving.servers import (
    APPS,
    JSON,
    Contender,
    Read,
    Request,
    app_environ,
    numbers_of,
    plain,
)
from benchmarks.serving.workloads import BENCH, ROOT, Work

ENVIRONMENTS: Final = ROOT / "build" / "peers"
COMMON: Final = ("numpy==2.4.6", "onnxruntime==1.31.1")


@dataclass(frozen=True)
class Environment:
    """A virtual environment. name: of its folder. packages: what it has besides `common`."""

    name: str
    packages: tuple[str, ...]
    common: tuple[str, ...] = COMMON

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return ENVIRONMENTS / self.name / "bin" / "python"

    @property
    def _stamp(self) -> Path:
        return ENVIRONMENTS / self.name / "packages.txt"

    def ready(self) -> bool:
        """Whether it has just these packages."""
        return self._stamp.exists() and self._stamp.read_text().split() == [*self.common, *self.packages]

    def make(self) -> None:
        """Make it, or mend it; minutes the first time, from PyPI."""
        if self.ready():
            return
        print(
            f"making the environment of {self.name} in {ENVIRONMENTS / self.name}",
            file=sys.stderr,
            flush=True,
        )
        subprocess.run([sys.executable, "-m", "venv", ENVIRONMENTS / self.name], check=True)
        pip = [self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
        subprocess.run([*pip, *self.common, *self.packages], check=True)
        self._stamp.write_text("\n".join([*self.common, *self.packages]) + "\n")


MOSEC: Final = Environment("mosec", ("mosec==0.9.8",))
MLSERVER: Final = Environment("mlserver", ("mlserver==1.7.1",))
BENTOML: Final = Environment("bentoml", ("bentoml==1.4.39",))
RAY: Final = Environment("ray", ("ray[serve]==2.60.0",))


def _run_app(environment: Environment, app: str) -> Callable[[Work, int], list[str]]:
    return lambda work, port: [str(environment.python), str(APPS / app)]


def _mlserver(window_ms: int) -> Callable[[Work, int], list[str]]:
    def command(work: Work, port: int) -> list[str]:
        """MLServer reads two files of settings; its model is found through PYTHONPATH."""
        folder = BENCH / "mlserver" / f"{work.key}-{window_ms}"
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"http_port": port, "parallel_workers": 0, "host": "127.0.0.1", "metrics_endpoint": None}
        # gRPC and metrics have ports of their own; 0 lets the system choose.
        settings |= {"grpc_port": 0, "debug": False}
        model = {
            "name": "model",
            "implementation": "mlserver_app.Runtime",
            "max_batch_size": 32,
            "max_batch_time": window_ms / 1000,
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        (folder / "model-settings.json").write_text(json.dumps(model))
        return [str(MLSERVER.python.parent / "mlserver"), "start", str(folder)]

    return command


def _ask_mlserver(work: Work) -> tuple[Request, Read]:
    tensor: dict[str, object] = {"name": "x", "datatype": "FP32", "shape": list(work.row.shape)}
    if work.raw:
        tensor |= {"datatype": "BYTES", "shape": [1, 1], "data": [base64.b64encode(work.raw_body()).decode()]}
    else:
        tensor["data"] = json.loads(work.json_body())["inputs"][0]
    body = json.dumps({"inputs": [tensor]}).encode()
    return Request("/v2/models/model/infer", JSON, body), lambda answer: np.array(
        json.loads(answer)["outputs"][0]["data"], np.float32
    )


def _bentoml(work: Work, port: int) -> list[str]:
    command = [
        str(BENTOML.python),
        "-m",
        "bentoml",
        "serve",
        "bentoml_app:Inference",
        "--working-dir",
        str(APPS),
    ]
    return [*command, "--host", "127.0.0.1", "--port", str(port)]


def _ask_bentoml(work: Work) -> tuple[Request, Read]:
    """Its JSON: {"rows": [...]}; raw rows as base64 strings: its batches are lists of JSON values."""
    rows = json.loads(work.json_body())["inputs"]
    if work.raw:
        rows = [base64.b64encode(work.raw_body()).decode()]
    body = json.dumps({"rows": rows}).encode()
    return Request("/predict", JSON, body), lambda answer: numbers_of(json.loads(answer))


def _with_apps(window_ms: int) -> Callable[[Work, int], dict[str, str]]:
    quiet = {"PYTHONPATH": str(APPS), "BENTOML_DO_NOT_TRACK": "True", "RAY_USAGE_STATS_ENABLED": "0"}
    return lambda work, port: {**app_environ(window_ms)(work, port), **quiet}


PEERS: Final = (
    *(
        Contender(
            f"mosec-{ms}",
            f"mosec, window {ms} ms",
            "mosec",
            _run_app(MOSEC, "mosec_app.py"),
            plain("/inference"),
            app_environ(ms),
        )
        for ms in (1, 2)
    ),
    *(
        Contender(
            f"mlserver-{ms}",
            f"MLServer, window {ms} ms",
            "mlserver",
            _mlserver(ms),
            _ask_mlserver,
            _with_apps(ms),
        )
        for ms in (1, 2)
    ),
    Contender("bentoml", "BentoML, its own window", "bentoml", _bentoml, _ask_bentoml, _with_apps(0)),
    *(
        Contender(
            f"ray-{ms}",
            f"Ray Serve, window {ms} ms",
            "ray",
            _run_app(RAY, "ray_app.py"),
            plain("/predict"),
            _with_apps(ms),
        )
        for ms in (0, 2)
    ),
)
FAMILIES: Final = {one.name: one for one in (MOSEC, MLSERVER, BENTOML, RAY)}
