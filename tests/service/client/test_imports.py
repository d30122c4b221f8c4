"""A machine that only asks needs numpy and an HTTP library."""

import subprocess
import sys

import pytest

ASK = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {others}:
            raise ModuleNotFoundError(f"{{name}} is not installed here", name=name)

sys.meta_path.insert(0, Nothing())
from foldserve import {client}, ClientError
{client}("http://localhost:1")
print(sorted(name for name in sys.modules if name.startswith("foldserve.service.")))
"""
SERVERS = {
    "httptools", "httpx", "litserve", "onnxruntime", "orjson", "PIL", "prometheus_client", "pynvml", "torch",
    "uvicorn", "yaml",
}  # fmt: skip


@pytest.mark.parametrize(("client", "more"), [("Client", {"aiohttp"}), ("AsyncClient", set())])
def test_client_is_there_without_what_only_a_server_needs(client, more):
    script = ASK.format(client=client, others=SERVERS | more)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    parts = {name.split(".")[2] for name in eval(done.stdout)}
    assert parts == {"client", "artifact", "errors"}
