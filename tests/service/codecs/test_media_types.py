import pytest

from foldserve.service.codecs import answer_type, pick_outputs
from foldserve.service.codecs.media_types import BodyType, answer_types, body_type
from foldserve.service.errors import BadRequest, NotAcceptable, UnsupportedMediaType
from tests.service.support import DOUBLE, PAIR

J, R, N = BodyType.JSON, BodyType.RAW, BodyType.NPY


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ("application/json", J),
        ("application/json; charset=utf-8", J),
        ("Application/JSON;charset=UTF-8", J),
        (" application/json ", J),
        ("application/vnd.acme+json", J),
        ("application/octet-stream", R),
        ("application/x-npy", N),
        ("APPLICATION/X-NPY", N),
    ],
)
def test_content_type_names_the_body(header, kind):
    assert body_type(header) is kind


@pytest.mark.parametrize(
    "header", [None, "", ";", "text/plain", "application/msgpack", "image/png", "json", "x" * 9999]
)
def test_any_other_content_type_is_refused_with_the_three(header):
    with pytest.raises(UnsupportedMediaType) as caught:
        body_type(header)
    said = str(caught.value)
    assert "application/json, application/octet-stream, application/x-npy" in said
    assert len(said) < 500


def test_what_curl_sends_by_default_is_refused_with_the_header_to_add():
    with pytest.raises(UnsupportedMediaType, match="add -H 'Content-Type: application/json'"):
        body_type("application/x-www-form-urlencoded")


@pytest.mark.parametrize("own", BodyType)
@pytest.mark.parametrize(
    "accept", [None, "", "*/*", "application/*", "*/*;q=0.1", "text/html, */*;q=0.8", " */* "]
)
def test_without_a_wish_the_answer_has_the_type_of_the_request(accept, own):
    assert answer_types(accept, own) == (own,)


@pytest.mark.parametrize(
    ("accept", "own", "best"),
    [
        ("application/json", R, J),
        ("application/x-npy", J, N),
        ("application/octet-stream", J, R),
        ("APPLICATION/JSON", R, J),
        ("application/json;q=0.5, application/x-npy", J, N),
        ("application/json;q=0.5, application/x-npy;q=0.4", R, J),
        ("application/json, application/x-npy", N, N),
        ("application/json, application/x-npy", J, J),
        ("application/json, application/x-npy", R, J),
        ("application/json, */*;q=0.1", R, J),
        ("application/x-npy;q=0, */*", N, J),
        ("application/json;q=0, application/*;q=0.5", J, N),
        ("text/html, application/json;q=0.2", R, J),
        ("application/json;charset=utf-8", R, J),
        ("application/json;q=0.3, application/json;q=0.9, application/x-npy;q=0.5", R, J),
        (",,application/json,,", R, J),
        ("application/json" + " " * 500, R, J),
    ],
)
def test_accept_decides(accept, own, best):
    assert answer_types(accept, own)[0] is best


def test_only_types_that_are_named_are_second_choices():
    assert answer_types("application/x-npy, application/json;q=0.5, */*;q=0.9", R) == (N, J)


@pytest.mark.parametrize(
    "accept",
    [
        "text/html",
        "application/xml, text/plain",
        "application/json;q=0",
        "*/*;q=0",
        "application/json;q=abc",
        "application/json;q=-1",
        "application/json;q=2",
        "application/json;q=nan",
        "image/*",
        "x" * 5000,
    ],
)
def test_accepting_none_of_the_three_is_refused(accept):
    with pytest.raises(NotAcceptable) as caught:
        answer_types(accept, J)
    assert "application/json, application/octet-stream, application/x-npy" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_several_outputs_need_json():
    assert answer_type(None, J, ("a", "b")) is J
    assert answer_type("application/x-npy, application/json;q=0.5", J, ("a", "b")) is J
    for accept in (None, "*/*", "application/x-npy"):
        with pytest.raises(NotAcceptable, match=r"\?output=a, or send 'Accept: application/json'"):
            answer_type(accept, N, ("a", "b"))


def test_one_output_fits_every_type():
    for own in BodyType:
        assert answer_type("*/*", own, ("a",)) is own


def test_outputs_are_all_or_the_one_asked_for():
    assert pick_outputs(PAIR, None) == ("sum", "count")
    assert pick_outputs(PAIR, "count") == ("count",)
    with pytest.raises(BadRequest, match="output 'x' is asked for; the model has y"):
        pick_outputs(DOUBLE, "x")
