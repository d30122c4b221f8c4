"""What schemathesis does besides, in its own process (SCHEMATHESIS_HOOKS): tests/e2e/test_openapi.py."""

import io
import os

import schemathesis
from hypothesis import strategies as st
from PIL import Image

JSON = "application/json"
EXACT = os.environ["EXACT_PATHS"].split()
"""Of the calls of which the document tells all that a JSON body must be. Elsewhere it cannot: that two inputs have as
many rows, or that a whole number is written without a decimal point."""
_UNKNOWN = "x-schemathesis-unknown-property"
_MOST_LABELS = "top asks for"


def _picture(kind: str, size: tuple[int, int], colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


for _type, _kind in (("image/jpeg", "JPEG"), ("image/png", "PNG")):
    _sides = st.integers(1, 40)
    _sizes, _colours = st.tuples(_sides, _sides), st.tuples(*[st.integers(0, 255)] * 3)
    schemathesis.openapi.media_type(
        _type, st.builds(_picture, st.just(_kind), _sizes, _colours) | st.binary()
    )


@schemathesis.hook
def before_call(context, case, kwargs) -> None:
    """A time that is too short is answered 504, as it should be: here any 5xx is a fault. And a length of 0 says that a
    body is raw numbers, whatever its type."""
    headers = case.headers or {}
    headers.pop("Authorization", None)  # a second key: the one that counts is given to all
    given = headers.get("X-Timeout-Ms", "")
    if given.replace(".", "", 1).isdigit() and 0 < float(given) < 10_000:
        headers["X-Timeout-Ms"] = "60000"
    parameters = case.body.get("parameters") if isinstance(case.body, dict) else None
    if (
        isinstance(parameters, dict)
        and isinstance(parameters.get("timeout"), int)
        and parameters["timeout"] > 0
    ):
        parameters["timeout"] = 60_000_000
    if _UNKNOWN in headers:  # is nothing to refuse, which schemathesis forgets beside a whole number
        headers.pop("X-Priority", None)
    if case.media_type == JSON:
        headers.pop("Inference-Header-Content-Length", None)


@schemathesis.check
def what_the_document_allows_is_answered(context, response, case) -> None:
    """A JSON body that it describes, of these calls; labels times rows have a bound that it cannot tell."""
    if case.path in EXACT and case.media_type == JSON and case.meta and case.meta.generation.mode.is_positive:
        assert response.status_code == 200 or _MOST_LABELS in response.text, response.text
