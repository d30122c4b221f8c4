"""How many open files there may be, in a process of its own with a limit of its own."""

import errno
import subprocess
import sys

import pytest

from foldserve.service.frontend.connections.descriptors import ConnectionLimits, connection_limits, enough

RUN = """
import resource
from foldserve.service.frontend.connections import descriptors
from foldserve.service.errors import ConfigError
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
"""


def runs(code: str, soft: int = 100, hard: int = 200) -> str:
    """What the code prints in a process with these limits."""
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(soft=soft, hard=hard) + code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_soft_limit_is_raised_to_the_hard_one() -> None:
    assert (
        runs("print(descriptors.raise_limit(), resource.getrlimit(resource.RLIMIT_NOFILE))")
        == "200 (200, 200)"
    )


def test_what_is_open_is_counted() -> None:
    code = "before = descriptors.open_now(); f = open('/dev/null'); print(descriptors.open_now() - before)"
    assert runs(code) == "1"
    without_proc = "import os; os.listdir = lambda path: os.stat('/no/such/folder')\n"
    assert runs(without_proc + code) == "1"


@pytest.mark.parametrize(
    ("free", "made"),
    [
        (10_000, ConnectionLimits(9904, 64)),
        (200, ConnectionLimits(118, 50)),
        (16, ConnectionLimits(4, 4)),
        (15, None),
        (0, None),
        (-5, None),
    ],
)
def test_some_descriptors_are_kept_for_guests_and_for_moments(
    free: int, made: ConnectionLimits | None
) -> None:
    assert connection_limits(free) == made


def test_too_few_for_what_is_made_are_told_with_the_limit_and_the_fix() -> None:
    code = """
try:
    with descriptors.enough("3 models"):
        files = [open("/dev/null") for _ in range(500)]
except ConfigError as error:
    print(error)
"""
    assert runs(code).startswith(
        "the limit of 100 open files is too low for 3 models and a few connections; raise"
    )


def test_other_errors_are_not_taken_for_a_lack_of_descriptors() -> None:
    with pytest.raises(PermissionError), enough("nothing"):
        raise PermissionError(errno.EACCES, "not allowed")


def test_descriptors_that_leave_no_room_for_connections_are_too_few() -> None:
    code = """
try:
    with descriptors.enough("all"):
        print(descriptors.for_connections(children=2, api_servers=1))
except ConfigError:
    print("too few")
"""
    assert runs(code, soft=30, hard=30) == "too few"
    assert int(runs(code, soft=200, hard=200)) > 50
