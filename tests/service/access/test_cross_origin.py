"""CORS: which pages may read, by the application and by what browsers ask first."""

from typing import Any

import pytest

from foldserve.service.access.cross_origin import CrossOrigin
from foldserve.service.protocols.openapi.responses import HEADERS, PARAMETERS

PAGE, OTHER = "https://app.example", "https://evil.example"


def test_page_that_is_named_may_read_and_another_may_not() -> None:
    one = CrossOrigin([PAGE, "http://localhost:3000"])
    assert dict(one.headers(PAGE))["Access-Control-Allow-Origin"] == PAGE
    assert dict(one.headers(PAGE))["Vary"] == "Origin"
    for origin in (OTHER, None, "null", PAGE + ".evil.example", PAGE.upper(), f"{PAGE}:443"):
        assert one.headers(origin) == (("Vary", "Origin"),)
        assert one.preflight(origin, ("GET",)) == ()


@pytest.mark.parametrize("origins", [["*"], [PAGE]])
def test_credentials_of_browsers_are_never_allowed_for(origins: list[str]) -> None:
    one = CrossOrigin(origins)
    said: dict[str, Any] = dict((*one.headers(PAGE), *one.preflight(PAGE, ("GET", "POST"))))
    assert "Access-Control-Allow-Credentials" not in said
    assert said["Access-Control-Allow-Origin"] == ("*" if origins == ["*"] else PAGE)
    assert "Authorization" in said["Access-Control-Allow-Headers"]
    assert "*" not in said["Access-Control-Allow-Headers"]
    assert "Retry-After" in said["Access-Control-Expose-Headers"]


def test_every_header_of_the_openapi_document_may_be_sent_by_a_page_and_read() -> None:
    one = CrossOrigin([PAGE])
    sent = dict(one.preflight(PAGE, ("POST",)))["Access-Control-Allow-Headers"].split(", ")
    assert {str(said["name"]) for said in PARAMETERS.values() if said["in"] == "header"} <= set(sent)
    assert set(HEADERS) <= set(dict(one.headers(PAGE))["Access-Control-Expose-Headers"].split(", "))
