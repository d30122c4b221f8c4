"""What a client is told of an error."""

import asyncio
from typing import Any

import grpc
import pytest

from foldserve.service import errors
from foldserve.service.errors import QueueFull, ServiceError
from foldserve.service.frontend.grpc.statuses import abort, client_error, refusal
from foldserve.service.inference.context import RequestContext
from foldserve.service.inference.response import error_response
from foldserve.service.protocols.oip.grpc_infer import OIP_GRPC

OF_HTTP_ALONE = {405, 406, 415, 505}
KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, ServiceError) and kind is not ServiceError
]


class Call:
    """Notes how it is ended."""

    def __init__(self) -> None:
        self.told: tuple[Any, ...] = ()

    async def abort(self, *told: Any) -> None:
        self.told = told
        raise grpc.aio.AbortError


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.status not in OF_HTTP_ALONE])
def test_every_error_has_a_status_a_text_and_its_code_however_it_ends_a_call(
    kind: type[ServiceError],
) -> None:
    error, call = kind("what is wrong"), Call()
    with pytest.raises(grpc.aio.AbortError):
        asyncio.run(abort(call, error))
    status, text, metadata = call.told
    assert (status is not grpc.StatusCode.UNKNOWN, text) == (True, "what is wrong")
    assert dict(metadata)["code"] == kind.code
    assert refusal(error_response(error, OIP_GRPC.render_error(error))) == call.told


def test_full_queue_says_when_to_come_again() -> None:
    error = QueueFull("full", 2.5)
    status, _, metadata = refusal(error_response(error, OIP_GRPC.render_error(error)))
    assert status is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert dict(metadata) == {"code": "queue_full", "retry-after": "3"}


def test_long_text_is_cut_so_that_it_is_among_the_headers_that_clients_take() -> None:
    error = errors.BadRequest("x" * 100_000)
    _, text, _ = refusal(error_response(error, OIP_GRPC.render_error(error)))
    assert len(text) == 2000


def test_fault_of_ours_is_logged_under_the_id_that_the_client_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    context = RequestContext("POST", "/a/call", "", {"x-request-id": "the-id"})
    try:
        raise ValueError("secret")
    except ValueError as raised:
        error = client_error(raised, context)
    assert (error.code, context.error_code) == ("internal", "internal")
    assert "the-id" in str(error)
    assert "secret" not in str(error)
    assert "secret" in caplog.text
