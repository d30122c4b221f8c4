"""Write a TorchScript archive without a copy of its weights in memory.

torch.jit.save into a file of Python's makes the whole archive in memory first, three times the weights; into a path it
writes piece by piece, but ends the process on a full disk, and puts the path's name into the archive. So it is given a
pipe with a name of its own, and a process of a few lines empties that into the file. It goes on reading when the disk
takes no more (torch must not see it), and its exit code is the error.
"""

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

# The name that torch.jit.save itself gives an archive that is in no file.
_NAME = "archive"

_EMPTY_THE_PIPE = """
import os
error = 0
while piece := os.read(0, 1 << 20):
    try:
        while piece and not error:
            piece = piece[os.write(1, piece):]
    except OSError as problem:
        error = problem.errno
os._exit(error)
"""


def write_torchscript(scripted: torch.jit.ScriptModule, path: Path) -> None:
    """Write scripted to path; the same module gives the same bytes. Raises: OSError."""
    with path.open("wb") as file, _pipe_into(file.fileno(), path) as pipe:
        torch.jit.save(scripted, pipe)


@contextmanager
def _pipe_into(file: int, path: Path) -> Iterator[str]:
    """The path of a pipe; what is written to it is in the file at the end. Raises: OSError, then."""
    with tempfile.TemporaryDirectory() as folder:
        pipe = os.path.join(folder, _NAME)
        os.mkfifo(pipe, 0o600)
        # Without O_NONBLOCK, opening either end waits for the other.
        reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        writing = os.open(pipe, os.O_WRONLY)  # so that the reader meets no end before torch has begun
        try:
            os.set_blocking(reading, True)
            # A session of its own: Ctrl-C is for the export, which waits for this process in any case.
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _EMPTY_THE_PIPE],
                stdin=reading,
                stdout=file,
                start_new_session=True,
            )
        except BaseException:
            os.close(writing)
            raise
        finally:
            os.close(reading)
        try:
            yield pipe
        finally:
            os.close(writing)
            code = process.wait()
        if code:
            number = code if code > 0 else errno.EIO  # it was ended by a signal
            raise OSError(number, os.strerror(number), str(path))
