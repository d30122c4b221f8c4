"""What a client is told of an error: gRPC's status, the text, and its stable code in the trailing metadata."""

import logging
from typing import Any, Final, NoReturn

import grpc

from foldserve.service.errors import Internal, ServiceError
from foldserve.service.inference.context import RequestContext
from foldserve.service.inference.response import Response
from foldserve.service.logs.limits import with_id

_STATUSES: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""By HTTP's."""
_TEXT_CHARS: Final = 2000
"""Of a text: it is sent among headers, of which clients take 8 KiB by default."""

_log = logging.getLogger("foldserve.grpc")

Metadata = tuple[tuple[str, str], ...]


def refusal(response: Response) -> tuple[grpc.StatusCode, str, Metadata]:
    """The status, text and trailing metadata of an inference request that failed."""
    metadata = tuple((name.lower(), value) for name, value in response.headers)
    return _STATUSES[response.status], response.body.decode()[:_TEXT_CHARS], metadata


def client_error(raised: Exception, context: RequestContext) -> ServiceError:
    """What the client is told of an error that is being handled, noted in its request's context; a fault of ours is
    logged."""
    if isinstance(raised, ServiceError):
        error = raised
    else:
        identity = context.request_id
        _log.exception("request %s failed: %s", identity, context.path, extra=with_id(identity))
        error = Internal(f"the server failed on this request; its log tells why, under id {identity}")
    context.error_code = error.code
    return error


async def abort(context: Any, error: ServiceError) -> NoReturn:
    """End a call with an error."""
    headers = {"code": error.code, **error.headers()}
    metadata = tuple((name.lower(), value) for name, value in headers.items())
    await context.abort(_STATUSES[error.status], str(error)[:_TEXT_CHARS], metadata)
    raise AssertionError("abort() raises")
