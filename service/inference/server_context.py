"""What the requests of an API server share."""

import asyncio
import itertools
import os

from foldserve.service.engine.codec_process.client import CodecProcess
from foldserve.service.engine.dispatcher import Dispatcher
from foldserve.service.engine.request import NO_BOUND_S
from foldserve.service.inference.observers import Observers
from foldserve.service.inference.partial_body import PartialBodies


class RequestIds:
    """Ids for requests that bring none: random per process and then counted, 32 characters."""

    def __init__(self) -> None:
        self._prefix = os.urandom(10).hex().encode()
        self._numbers = itertools.count()

    def make(self) -> bytes:
        """The next id."""
        return b"%b%012x" % (self._prefix, next(self._numbers))


class ServerContext:
    """What every request of an API server needs. request_timeout_s: the most time from a request's head to its answer;
    None = no bound."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        codecs: CodecProcess,
        bodies: PartialBodies,
        observers: Observers,
        request_timeout_s: float | None,
    ) -> None:
        self.dispatcher = dispatcher
        self.codecs = codecs
        self.bodies = bodies
        self.observers = observers
        self.request_timeout_s = request_timeout_s
        self.request_timeout_ns = nanoseconds(request_timeout_s)
        self.ids = RequestIds()
        self.loop = asyncio.get_running_loop()


def nanoseconds(timeout_s: float | None) -> int:
    """Of a time in seconds; None for no bound."""
    return int((NO_BOUND_S if timeout_s is None else timeout_s) * 1e9)
