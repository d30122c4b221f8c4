"""Every error a client of the server can be answered with, and the one for bad settings.

A ServiceError carries its HTTP status and a stable word (`code`) that client programs may switch on; its
text says what is wrong with which value, what was expected and how to fix it, and is sent to the client: no
paths, no tracebacks. The errors travel between processes, so each of them must survive pickle. Must not know
HTTP beyond a status number and header values; the JSON they become is made in service/inference/response.py.
"""

import math
import os
from typing import ClassVar


class ServiceError(Exception):
    """Something that can be explained to the client; str(error) is what the client reads."""

    status: ClassVar[int]
    code: ClassVar[str]

    def headers(self) -> dict[str, str]:
        """Headers that the answer must carry besides the usual ones."""
        return {}


class BadRequest(ServiceError):
    """The request cannot be understood: a header or a parameter has a bad value."""

    status = 400
    code = "bad_request"


class BadJson(ServiceError):
    """The body is not JSON, or not JSON of the expected form."""

    status = 400
    code = "bad_json"


class BadTensor(ServiceError):
    """A tensor does not fit the model's signature: name, datatype, rank, dims, rows or value range."""

    status = 400
    code = "bad_tensor"


class BadPicture(ServiceError):
    """The bytes are no picture that can be decoded, or too large a one."""

    status = 400
    code = "bad_picture"


class Unauthorized(ServiceError):
    """No key, or a wrong one, where the server asks for one."""

    status = 401
    code = "unauthorized"

    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class Forbidden(ServiceError):
    """The key is one of ours, and not for this call or model."""

    status = 403
    code = "forbidden"


class UnknownModel(ServiceError):
    """No model of that name is served."""

    status = 404
    code = "unknown_model"


class UnknownVersion(ServiceError):
    """The model is served, that version of it is not."""

    status = 404
    code = "unknown_version"


class NotFound(ServiceError):
    """No route has that path."""

    status = 404
    code = "not_found"


class MethodNotAllowed(ServiceError):
    """The path exists, but not with that method; `allow` lists those that it has."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, allow: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.allow = allow

    def headers(self) -> dict[str, str]:
        return {"Allow": ", ".join(self.allow)}


class NotAcceptable(ServiceError):
    """None of the types that the client accepts can carry the answer."""

    status = 406
    code = "not_acceptable"


class TooLarge(ServiceError):
    """The body is larger than the server takes."""

    status = 413
    code = "too_large"


class UnsupportedMediaType(ServiceError):
    """The body's Content-Type (or Content-Encoding) is none that the route reads."""

    status = 415
    code = "unsupported_media_type"


class QueueFull(ServiceError):
    """The model's queue is at its bound, or its caller's share of it; `retry_after_s` is when there is likely to be
    room."""

    status = 429
    code = "queue_full"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def headers(self) -> dict[str, str]:
        # Retry-After counts whole seconds (RFC 9110, 10.2.3): rounded up, and never 0, which means "at once".
        return {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}


class RateLimited(QueueFull):
    """The caller has asked for as many rows as its key may in this time: its own queue is full, so to say."""

    code = "rate_limited"


class ModelFailed(ServiceError):
    """The model raised on this request, or its answer cannot be sent as asked."""

    status = 500
    code = "model_failed"


class ModelCrashed(ServiceError):
    """The process that ran this request died."""

    status = 500
    code = "model_crashed"


class Internal(ServiceError):
    """A fault of the server itself. Its cause is not told: that is in the log, under the request id."""

    status = 500
    code = "internal"


class NotImplementedHere(ServiceError):
    """The request asks for a part of HTTP that is not served."""

    status = 501
    code = "not_implemented"


class NotReady(ServiceError):
    """The server or the model is still loading, or was found unfit to serve."""

    status = 503
    code = "not_ready"


class MetricsUnavailable(ServiceError):
    """The process that writes the metrics is being started, or gave no answer."""

    status = 503
    code = "metrics_unavailable"


class Draining(ServiceError):
    """The server is shutting down and takes no new work."""

    status = 503
    code = "draining"


class TooManyConnections(ServiceError):
    """The process has no descriptor to spare for the connection."""

    status = 503
    code = "too_many_connections"

    def headers(self) -> dict[str, str]:
        return {"Retry-After": "1"}


class DeadlinePassed(ServiceError):
    """The time that the request was given has passed before there was an answer."""

    status = 504
    code = "deadline_passed"

    @classmethod
    def after(cls, timeout_s: float | None) -> "DeadlinePassed":
        """For a request that had this many seconds; None where they are not known any more."""
        shown = "" if timeout_s is None else f" of {timeout_s * 1000:g} ms"
        return cls(
            f"the request was not answered within its time{shown}; allow more with X-Timeout-Ms or the timeout in its "
            "body (up to the server's --request-timeout-ms and the model's queue.timeout_ms), or send less"
        )


class VersionNotSupported(ServiceError):
    """The request is in another protocol, or in a version of HTTP that is not spoken here."""

    status = 505
    code = "version_not_supported"


def new_error_id() -> str:
    """A word that a client is told and the log has, where the cause is not for clients."""
    return os.urandom(6).hex()


class ConfigError(Exception):
    """Bad settings: all problems found, each with its fix. The command that meets it exits with code 2."""

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems: tuple[str, ...] = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)
