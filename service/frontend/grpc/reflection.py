"""grpc.reflection.v1 and v1alpha: which services there are and what their messages look like, for grpcurl and the like.

Source: grpc/grpc, doc/server-reflection.md. The two versions differ in their packages alone. What is told are the
descriptors of protocols/oip/messages: what is served, which of the protocol's own files is a part.
"""

from typing import Any, Final

import grpc

from foldserve.service.errors import TooLarge
from foldserve.service.frontend.grpc.received import SMALL_BYTES, parsed
from foldserve.service.protocols.oip.messages import SERVICES, file_named, file_of, is_message, methods

CALL: Final = "ServerReflectionInfo"


async def answer_all(service: str, context: Any) -> None:
    """Answer the questions of one stream, one after the other. service: the version of it that is called.

    Raises: BadRequest, TooLarge.
    """
    request, response = methods(service)[CALL]
    while (message := await context.read()) is not grpc.aio.EOF:
        if len(message) > SMALL_BYTES:
            raise TooLarge(
                f"the question has {len(message)} bytes; expected at most {SMALL_BYTES}: ask for one name at a time"
            )
        asked = parsed(request, message)
        told = response(valid_host=asked.host, original_request=asked, **_answer(asked))
        await context.write(told.SerializeToString())


def _answer(asked: Any) -> dict[str, Any]:
    """The field of the answer to a question."""
    kind = asked.WhichOneof("message_request")
    if kind == "list_services":
        return {"list_services_response": {"service": [{"name": name} for name in SERVICES]}}
    if kind == "all_extension_numbers_of_type":
        name = asked.all_extension_numbers_of_type
        if is_message(name):  # there are no extensions in proto3
            return {"all_extension_numbers_response": {"base_type_name": name}}
        return _not_found(f"message {name[:100]!r}")
    if kind == "file_by_filename":
        what, found = f"file {asked.file_by_filename[:100]!r}", file_named(asked.file_by_filename)
    elif kind == "file_containing_symbol":
        what, found = f"symbol {asked.file_containing_symbol[:100]!r}", file_of(asked.file_containing_symbol)
    elif kind == "file_containing_extension":
        what, found = f"extension of {asked.file_containing_extension.containing_type[:100]!r}", None
    else:
        return _error(
            grpc.StatusCode.INVALID_ARGUMENT, "the question asks for nothing; set one of its fields"
        )
    if found is None:
        return _not_found(what)
    return {"file_descriptor_response": {"file_descriptor_proto": [found]}}


def _not_found(what: str) -> dict[str, Any]:
    return _error(grpc.StatusCode.NOT_FOUND, f"there is no {what} here; list_services tells what there is")


def _error(status: Any, text: str) -> dict[str, Any]:
    return {"error_response": {"error_code": status.value[0], "error_message": text}}
