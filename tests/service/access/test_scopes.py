"""The table of scopes names every call that there is, and nothing else."""

from types import SimpleNamespace

import grpc
import pytest

from foldserve.service.access.gate import WIDE_OPEN
from foldserve.service.access.scopes import CONTROL, NEEDED, OPEN, SCOPES, scope_of, words
from foldserve.service.frontend.grpc.calls import GrpcCalls
from foldserve.service.frontend.grpc.inference import INFER, STREAM
from tests.service.support import app_of


def test_every_call_of_rest_and_grpc_has_its_line() -> None:
    assert grpc
    nobody: object = None
    information: object = SimpleNamespace(status=None)
    calls = GrpcCalls(information, nobody, nobody, nobody, WIDE_OPEN).handlers()  # type: ignore[arg-type]
    there = {*(route.path for route in app_of().routes()), *calls, INFER, STREAM}
    assert there == set(NEEDED)


def test_call_that_is_not_in_the_table_needs_the_strictest_scope() -> None:
    assert scope_of("/v2/repository/models/{model}/load") == CONTROL
    assert scope_of("/inference.GRPCInferenceService/Other") == CONTROL


def test_only_liveness_readiness_and_the_page_are_open() -> None:
    assert {call.rpartition("/")[2] for call, scope in NEEDED.items() if scope == OPEN} == {
        *("", "health", "ping", "live", "ready", "ServerLive", "ServerReady", "Check", "Watch"),
        *("docs", "{file}"),
    }


@pytest.mark.parametrize(("scopes", "text"), [(0, "none"), (7, "infer, control, metrics")])
def test_scopes_are_told_in_the_words_of_the_file(scopes: int, text: str) -> None:
    assert words(scopes) == text
    assert sum(SCOPES.values()) == 7
