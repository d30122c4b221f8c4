"""What is known of one request, whatever it came by: what its head says, and what was learned of it since.

It goes into the headers of the response, the access log and the metrics. Free of any server framework.
"""

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl

from foldserve.service.codecs.protocol import Options
from foldserve.service.errors import BadRequest
from foldserve.service.inference.partial_body import UNKNOWN

REFUSAL: Final = "foldserve.refusal"
"""In a scope: the ServiceError with which the request is to be answered, whatever it asks."""
BROKEN: Final = "error"
"""In an http.disconnect: the ServiceError that ended the body."""
CLIENT_GONE: Final = 499
"""The status, in the log and the metrics alone, of a request whose client left before its answer."""
MAX_TIMEOUT_MS: Final = 86_400_000
_REQUEST_ID: Final = re.compile(r"[\x20-\x7e]{1,128}")
_MILLISECONDS: Final = re.compile(r"\d{1,9}(\.\d{1,6})?", re.ASCII)
_LEVEL: Final = re.compile(r"\d{1,15}", re.ASCII)
_LENGTH: Final = re.compile(r"\d{1,18}", re.ASCII)
_QUERY_BYTES: Final = 4096
_TENSOR_HEADER_CHARS: Final = 4096


@dataclass(slots=True)
class RequestContext:
    """The head of a request, and what has been learned of it.

    headers: by lower-case name. key: the name of the caller's. started_s: CLOCK_MONOTONIC when the head was seen.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    request_id: str = ""
    started_s: float = field(default_factory=time.monotonic)

    route: str = ""
    protocol: str = "other"
    model: str = ""
    version: str = ""
    key: str = ""
    rows: int = 0
    batch_rows: int = 0
    body_bytes: int = 0
    stages_s: dict[str, float] = field(default_factory=dict)
    error_code: str | None = None
    counted: bool = True
    """Whether the metrics count it: not the pages that the server shows of itself."""

    def __post_init__(self) -> None:
        if not self.request_id:
            self.request_id = request_id(self.headers.get("x-request-id"))

    def elapsed_s(self) -> float:
        """Seconds since the head was seen."""
        return time.monotonic() - self.started_s

    def tensor_headers(self) -> Options:
        """The values of X-Tensor-Name, -Datatype and -Shape, None for one that was not sent; nothing when none was.

        Raises: BadRequest for one that is too long.
        """
        found = [self.headers.get(f"x-tensor-{part}") for part in ("name", "datatype", "shape")]
        longest = max(len(value or "") for value in found)
        if longest > _TENSOR_HEADER_CHARS:
            raise BadRequest(
                f"an X-Tensor-* header has {longest} characters; expected at most {_TENSOR_HEADER_CHARS}: send the "
                "tensor's own name, datatype and shape, or leave the header out"
            )
        return () if found == [None, None, None] else found

    def query_values(self, known: tuple[str, ...]) -> dict[str, str]:
        """The query's parameters. Raises BadRequest for one that is not known, empty, or given twice."""
        if not self.query:
            return {}
        if len(self.query) > _QUERY_BYTES:
            raise BadRequest(f"the query has {len(self.query)} bytes; expected at most {_QUERY_BYTES}")
        values: dict[str, str] = {}
        for name, value in parse_qsl(self.query, keep_blank_values=True):
            if name not in known:
                expected = ", ".join(known)
                raise BadRequest(
                    f"query parameter {name[:50]!r} is unknown; expected {expected}: correct or drop it"
                )
            if name in values or not value:
                raise BadRequest(f"query parameter {name!r} must be given once and with a value")
            values[name] = value
        return values

    def server_timing(self) -> str:
        """The Server-Timing header:

        milliseconds by stage in the order of the stages, and the batch's rows.
        """
        parts = [f"{stage};dur={seconds * 1000:.3f}" for stage, seconds in self.stages_s.items()]
        if self.batch_rows:
            parts.append(f'batch;desc="{self.batch_rows}"')
        return ", ".join(parts)


def request_id(given: str | None) -> str:
    """The client's own id when it is printable ASCII of at most 128 characters, else a new one."""
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return os.urandom(16).hex()


def allowed_s(header: str, bound_s: float | None) -> float:
    """The seconds of an X-Timeout-Ms header, bound_s at most. Raises BadRequest."""
    if not _MILLISECONDS.fullmatch(header) or not 0 < float(header) <= MAX_TIMEOUT_MS:
        raise BadRequest(
            f"X-Timeout-Ms is {header[:50]!r}; expected milliseconds above 0 and up to {MAX_TIMEOUT_MS}, as in 250"
        )
    wanted_s = float(header) / 1000
    return wanted_s if bound_s is None else min(wanted_s, bound_s)


def priority_of(header: str | None) -> int:
    """The level that an X-Priority header names; 0 without one. Raises BadRequest."""
    if header is None:
        return 0
    if not _LEVEL.fullmatch(header):
        raise BadRequest(
            f"X-Priority is {header[:50]!r}; expected a priority level of the model, 1 being the first served, or 0 "
            "for its default"
        )
    return int(header)


def content_length(header: str | None) -> int:
    """The bytes that a Content-Length header says; UNKNOWN without one. Raises BadRequest."""
    if header is None:
        return UNKNOWN
    header = header.strip(" \t")
    if not _LENGTH.fullmatch(header):
        raise BadRequest(
            f"Content-Length is {header[:50]!r}; expected a number of bytes: send the length of the body"
        )
    return int(header)
