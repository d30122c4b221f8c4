"""Other servers of the Open Inference Protocol, each with the settings that its own guide recommends for one model.

Triton: the server's binary, as the package nvidia-pytriton has it, with the Python backend and dynamic batching.
KServe: the model server of its Python SDK, which does not batch. MLServer: in its own process, with adaptive batching.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.serving import oip
from benchmarks.serving.peers import MLSERVER, Environment
from benchmarks.serving.servers import APPS, COMPILED, FOLDSERVE, Contender, app_environ
from benchmarks.serving.workloads import BENCH, Work

TRITON: Final = Environment("triton", ("nvidia-pytriton==0.7.0",), ("numpy==1.26.4", "onnxruntime==1.31.1"))
KSERVE: Final = Environment("kserve", ("kserve==0.21.0",))
MAX_BATCH: Final = 32

_TRITON_CONFIG: Final = """\
backend: "python"
max_batch_size: {batch}
input [{{ name: "x" data_type: TYPE_FP32 dims: {dims} }}]
output [{{ name: "y" data_type: TYPE_FP32 dims: [ -1 ] }}]
instance_group [{{ count: 1 kind: KIND_CPU }}]
dynamic_batching {{ max_queue_delay_microseconds: {window_us} }}
"""


def _site_packages(environment: Environment) -> Path:
    (found,) = (environment.python.parents[1] / "lib").glob("python3.*/site-packages")
    return found


def _backends() -> Path:
    """The package's backends, with the stub of the Python that the environment has beside the backend that runs it."""
    given = _site_packages(TRITON) / "pytriton" / "tritonserver"
    made = BENCH / "triton" / "backends"
    stub = made / "python" / "triton_python_backend_stub"
    if not stub.exists():
        shutil.copytree(given / "backends", made, dirs_exist_ok=True)
        version = _site_packages(TRITON).parent.name.removeprefix("python")
        shutil.copy(given / "python_backend_stubs" / version / stub.name, stub)
    return made


def _triton(window_us: int) -> Callable[[Work, int], list[str]]:
    def command(work: Work, port: int) -> list[str]:
        repository = BENCH / "triton" / f"{work.key}-{window_us}"
        version = repository / work.model / "1"
        version.mkdir(parents=True, exist_ok=True)
        shutil.copy(APPS / "triton_model.py", version / "model.py")
        config = _TRITON_CONFIG.format(batch=MAX_BATCH, dims=list(work.row_shape), window_us=window_us)
        (repository / work.model / "config.pbtxt").write_text(config)
        binary = _site_packages(TRITON) / "pytriton" / "tritonserver" / "bin" / "tritonserver"
        command = [str(binary), f"--model-repository={repository}", f"--backend-directory={_backends()}"]
        command += [f"--http-port={port}", "--http-address=127.0.0.1", "--log-warning=false"]
        return [*command, "--allow-grpc=false", "--allow-metrics=false"]

    return command


def _in_triton(work: Work, port: int) -> dict[str, str]:
    packages = _site_packages(TRITON)
    # The stub was moved away from the libraries that it looks for beside itself.
    paths = {"PYTHONPATH": f"{APPS}:{packages}", "LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs")}
    return {**app_environ()(work, port), **paths}


def _kserve(work: Work, port: int) -> list[str]:
    command = [str(KSERVE.python), str(APPS / "kserve_app.py"), f"--model_name={work.model}"]
    return [*command, f"--http_port={port}", "--enable_grpc=False", "--workers=1"]


def _mlserver(work: Work, port: int) -> list[str]:
    folder = BENCH / "mlserver-oip" / work.key
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"http_port": port, "parallel_workers": 0, "host": "127.0.0.1", "metrics_endpoint": None}
    model = {"name": work.model, "implementation": "mlserver_app.Runtime"}
    model |= {"max_batch_size": MAX_BATCH, "max_batch_time": 0.001}
    (folder / "settings.json").write_text(json.dumps({**settings, "grpc_port": 0, "debug": False}))
    (folder / "model-settings.json").write_text(json.dumps(model))
    return [str(MLSERVER.python.parent / "mlserver"), "start", str(folder)]


def _with_apps(work: Work, port: int) -> dict[str, str]:
    return {**app_environ()(work, port), "BENCH_RAW": "", "PYTHONPATH": str(APPS)}


OURS: Final = Contender(
    "foldserve",
    "**foldserve**, 1 API server",
    "foldserve",
    FOLDSERVE[0].command,
    oip.ask,
    lambda work, port: COMPILED,
)
OIP_CONTENDERS: Final = (
    OURS,
    *(
        Contender(
            f"triton-{us}",
            f"Triton, Python backend, delay {us} µs",
            "triton",
            _triton(us),
            oip.ask,
            _in_triton,
        )
        for us in (0, 1000)
    ),
    Contender("mlserver", "MLServer, window 1 ms", "mlserver", _mlserver, oip.ask, _with_apps),
    Contender("kserve", "KServe's Python server", "kserve", _kserve, oip.ask, _with_apps),
)
OIP_ENVIRONMENTS: Final = (TRITON, KSERVE, MLSERVER)
JSON_ALONE: Final = frozenset(("mlserver",))
"""Servers whose REST has no binary tensors: they have no part in the binary rows."""
