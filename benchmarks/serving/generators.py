"""The load generators in C: compiling them, the request they are given, the line they print."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.serving.servers import Request

HERE: Final = Path(__file__).parent
SHARED: Final = HERE / "load.h"


def build(name: str, folder: Path, options: Sequence[str]) -> Path:
    """Compile `name`.c into `folder`, unless the program there is newer than its sources."""
    program, source = folder / name, HERE / f"{name}.c"
    if program.exists() and program.stat().st_mtime > max(path.stat().st_mtime for path in (source, SHARED)):
        return program
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit(
            f"no C compiler for the load generator {name}. Debian, Ubuntu: apt-get install gcc libc6-dev"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as aside:  # no half-written program under that name
        made = Path(aside) / name
        subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-o", made, source, *options], check=True)
        os.replace(made, program)
    return program


@contextmanager
def request_file(port: int, request: Request) -> Iterator[str]:
    """A file that holds the whole HTTP/1.1 request."""
    lines = [
        f"POST {request.path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        f"Content-Length: {len(request.body)}",
    ]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    with tempfile.NamedTemporaryFile() as file:
        file.write("\r\n".join([*lines, "", ""]).encode() + request.body)
        file.flush()
        yield file.name


def figures(output: str) -> dict[str, float]:
    """What a generator's line says, by name. Raises: ValueError when there is none."""
    line = re.search(r"^FIGURES (.*)$", output, re.MULTILINE)
    if line is None:
        raise ValueError(f"the generator printed no figures:\n{output}")
    return {name: float(value) for name, value in re.findall(r"(\w+)=([\d.]+)", line[1])}
