"""Settings every test runs under, and the fixtures several parts use; a part's own live in its folder."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig

import pytest
from hypothesis import HealthCheck, settings

from foldserve.service.ipc.slots import slot_state

# A machine that does other things too may stop for longer than an example's 0.2 s. The parent is hypothesis's own
# choice: in CI another one, whose examples are the same in every run.
settings.register_profile(
    "foldserve", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("foldserve")

# One thread per process: test files run side by side on few cores, and the servers that tests start inherit
# this. Set here, before anything imports torch or numpy, because their thread pools read it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Before a test imports onnxruntime by itself: its telemetry is off from here on.
import foldserve.service.backends.onnxruntime.library  # noqa: E402, F401 - it brings numpy, so it comes behind the line above

# Every move of every slot is held against the table, in this process; servers get --check-moves.
slot_state.checking = True

# Whole engines are put together in one process by the hundred, each with a dozen descriptors that go only with
# the process: more than the usual soft limit of 1024.
_, _most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (_most, _most))

# A script's background job ignores Ctrl-C, nohup a hang-up, and what is ignored stays so in all that is started.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--openapi-examples", default="0", help="random requests of each call, for tests/e2e/test_openapi.py"
    )


def _tool(name: str, package: str) -> str:
    """The path of a program: from PATH, or where deploy/dev/get-tool.sh (`make test`) puts it."""
    folders = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", sysconfig.get_path("scripts")))
    path = shutil.which(name, path=folders)
    if path is None:
        pytest.skip(f"{name} is not installed (Debian, Ubuntu: apt-get install {package})")
    return path


@pytest.fixture(scope="session")
def promtool() -> str:
    """The path of promtool."""
    return _tool("promtool", "prometheus")


@pytest.fixture(scope="session")
def browser_path() -> str:
    """The path of a Chromium."""
    folders = os.pathsep.join((os.environ.get("PATH", ""), sysconfig.get_path("scripts")))
    for name in ("chromium-headless-shell", "chromium", "google-chrome"):
        if path := shutil.which(name, path=folders):
            return path
    pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")


@pytest.fixture(scope="session")
def perf_analyzer() -> str:
    """The path of NVIDIA's perf_analyzer."""
    path = shutil.which("perf_analyzer", path=sysconfig.get_path("scripts"))
    if path is None:
        pytest.skip("perf_analyzer is not there; deploy/dev/get-perf-analyzer.sh gets it where it can be had")
    return path


@pytest.fixture(scope="session")
def nginx() -> str:
    """The path of an nginx that runs here."""
    path = _tool("nginx", "nginx")
    tried = subprocess.run([path, "-v"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"{path} does not run here: {tried.stderr.strip()}")
    return path


@pytest.fixture(scope="session")
def node() -> str:
    """The path of Node.js."""
    return _tool("node", "nodejs")


@pytest.fixture(scope="session")
def java() -> str:
    """The path of Java, with its compiler: it runs sources."""
    return _tool("java", "default-jdk-headless")


@pytest.fixture(scope="session")
def go() -> str:
    """The path of Go."""
    return _tool("go", "golang-go")


@pytest.fixture(scope="session")
def with_kserve() -> dict[str, str]:
    """An environment in which Python finds KServe's client."""
    folder = os.path.join(sys.prefix, "lib", "kserve")
    if not os.path.isdir(folder):
        pytest.skip("kserve is not there; deploy/dev/get-kserve.sh gets it where it can be had")
    return {**os.environ, "PYTHONPATH": folder}
