"""The codec process: takes an order, works, asks for room, writes into it; one at a time, until its API server is gone.

Started by child.py with descriptors of three things: the socket, the plan, the arena. Knows no HTTP and no queue; what
it is asked for and how long it may take is its API server's to say.
"""

import contextlib
import gc
import logging
import mmap
import pickle
import socket
import sys
from pathlib import Path
from typing import Any

from foldserve.service.engine.codec_process import messages
from foldserve.service.engine.codec_process.messages import Body, CodecPlan, MessageType
from foldserve.service.engine.codec_process.runner import CodecResult, CodecRunner
from foldserve.service.errors import ServiceError
from foldserve.service.host.processes import die_with_parent
from foldserve.service.ipc.model_table import ModelKey
from foldserve.service.ipc.shared_regions import SharedRegions
from foldserve.service.logs.records import configure_logging

_log = logging.getLogger("foldserve.codecs")


def main(parent: int, channel_fd: int, plan_fd: int, arena_fd: int) -> None:
    """Work until the API server, process `parent`, is gone."""
    die_with_parent(parent)
    with contextlib.suppress(
        OSError
    ):  # where memory runs out, let it be this process that is ended: it holds no client
        Path("/proc/self/oom_score_adj").write_text("500")
    with open(plan_fd, "rb") as file:
        plan: CodecPlan = pickle.load(file)  # our own parent's
    configure_logging(plan.log_style)
    memory = memoryview(mmap.mmap(arena_fd, plan.arena_bytes))
    limit = plan.region_limit_bytes
    regions = None if plan.regions is None else SharedRegions(plan.regions.map(), limit, limit)
    runner = CodecRunner(plan.models.map(), plan.protocols, memory, regions)
    # A body becomes millions of objects, none of which is garbage until all are: collections on the way would each
    # walk over them. What a traceback leaves in a circle goes between two orders; what outlives
    # one, such as a module that it was the first to need, is not walked over again.
    gc.disable()
    gc.freeze()
    with socket.socket(fileno=channel_fd) as channel:
        while packet := channel.recv(messages.PACKET_BYTES):
            if not _answer(channel, packet, runner):
                return
            gc.collect()
            gc.freeze()


def _answer(channel: socket.socket, packet: bytes, runner: CodecRunner) -> bool:
    """Work on one order. False when the API server is gone."""
    try:
        result = _run_order(packet, runner)
    except ServiceError as error:
        channel.send(messages.refusal(error))
        return True
    except Exception:
        _log.exception("a body or an answer could not be processed")
        channel.send(messages.pack(MessageType.BROKEN))
        return True
    channel.send(messages.sized_message(result.sized))
    reply = channel.recv(messages.PACKET_BYTES)
    if not reply:
        return False
    message_type, values = messages.unpack(reply)
    if message_type == MessageType.PUT:
        result.write(runner.memory, *values)
        channel.send(messages.pack(MessageType.DONE))
    return True


def _run_order(packet: bytes, runner: CodecRunner) -> CodecResult:
    message_type, values = messages.unpack(packet)
    key = ModelKey(*values.pop(0))
    if message_type == MessageType.RENDER:
        return runner.render(key, *values)
    protocol, at, body = values
    return runner.parse(key, protocol, at, Body(*body))


def arguments(*values: Any) -> list[str]:
    """The command line that starts main() with these values."""
    # With this process's own path to modules, and without the working directory, which may be anywhere.
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main(*map(int, sys.argv[1:]))"
    )
    return [sys.executable, "-P", "-c", code, *map(str, values)]
