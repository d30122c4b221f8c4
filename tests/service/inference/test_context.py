import pytest

from foldserve.service.errors import BadRequest
from foldserve.service.inference.context import RequestContext, allowed_s, content_length, request_id
from foldserve.service.inference.partial_body import UNKNOWN


def head(query="", **headers):
    return RequestContext(
        "POST", "/predict", query, {name.replace("_", "-"): value for name, value in headers.items()}
    )


@pytest.mark.parametrize("given", ["a", "0f-3b", "x" * 128, "with space", '~!"{}'])
def test_a_printable_request_id_is_kept(given):
    assert head(x_request_id=given).request_id == given


@pytest.mark.parametrize("given", [None, "", "x" * 129, "tab\there", "line\nbreak", "größe", "\x7f"])
def test_any_other_request_id_is_replaced(given):
    made = request_id(given)
    assert made != given
    assert len(made) == 32
    assert made.isalnum()


def test_made_request_ids_differ():
    assert len({request_id(None) for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("header", "bound_s", "expected_s"),
    [
        ("250", None, 0.25),
        ("250", 30.0, 0.25),
        ("60000", 30.0, 30.0),
        ("0.5", 30.0, 0.0005),
    ],
)
def test_the_time_of_a_request_is_the_shorter_of_its_own_and_the_servers(header, bound_s, expected_s):
    assert allowed_s(header, bound_s) == expected_s


@pytest.mark.parametrize(
    "header",
    [
        "",
        "0",
        "0.0",
        "-1",
        "+5",
        "abc",
        "nan",
        "inf",
        "1e3",
        "1 ",
        "1,5",
        "0x10",
        "999999999",
        "٣",
        "9" * 400,
    ],
)
def test_a_time_that_is_none_is_refused(header):
    with pytest.raises(BadRequest, match="X-Timeout-Ms is"):
        allowed_s(header, None)


def test_known_query_parameters_are_read():
    assert head("version=2&output=a%20b").query_values(("version", "output")) == {
        "version": "2",
        "output": "a b",
    }


@pytest.mark.parametrize("query", ["verison=2", "version=1&version=2", "version=", "version", "x" * 5000])
def test_any_other_query_is_refused(query):
    with pytest.raises(BadRequest):
        head(query).query_values(("version", "output"))


def test_server_timing_is_milliseconds_by_stage_and_the_rows_of_the_batch():
    call = head()
    call.stages_s = {"decode": 0.0015, "queue": 0.0, "run": 2.0}
    call.batch_rows = 8
    assert call.server_timing() == 'decode;dur=1.500, queue;dur=0.000, run;dur=2000.000, batch;desc="8"'


def test_tensor_headers_are_there_when_one_of_them_is():
    assert head().tensor_headers() == ()
    assert head(x_tensor_shape="1,3").tensor_headers() == [None, None, "1,3"]


@pytest.mark.parametrize("length", ["", "-1", "1.0", "0x5", "ten", "9" * 30])
def test_a_length_that_is_no_number_is_refused(length):
    with pytest.raises(BadRequest, match="Content-Length"):
        content_length(length)


def test_a_length_is_bytes_and_unknown_where_none_is_said():
    assert (content_length("12"), content_length(" 0\t"), content_length(None)) == (12, 0, UNKNOWN)
