import pytest

from foldserve.service.errors import MethodNotAllowed, NotFound
from foldserve.service.frontend.routing import RouteTable
from foldserve.service.protocols.routes import Route


async def nothing(call, receive, parameters):
    raise AssertionError("never called")


TABLE = RouteTable(
    (
        Route("POST", "/predict", "one", nothing),
        Route("POST", "/predict/{model}", "two", nothing),
        Route("GET", "/predict/{model}", "three", nothing),
        Route("POST", "/predict/{model}/versions/{version}", "four", nothing),
        Route("GET", "/a.b", "five", nothing),
        Route("POST", "/predict/{model}:now", "six", nothing),
    )
)


@pytest.mark.parametrize(
    ("method", "path", "summary", "parameters"),
    [
        ("POST", "/predict", "one", {}),
        ("POST", "/predict/m", "two", {"model": "m"}),
        ("POST", "/predict/m:now", "six", {"model": "m"}),
        ("POST", "/predict/m:then", "two", {"model": "m:then"}),
        ("GET", "/predict/m", "three", {"model": "m"}),
        ("HEAD", "/predict/m", "three", {"model": "m"}),
        ("POST", "/predict/a b.c", "two", {"model": "a b.c"}),
        ("POST", "/predict/m/versions/2", "four", {"model": "m", "version": "2"}),
        ("GET", "/a.b", "five", {}),
    ],
)
def test_a_route_is_found_with_its_parameters(method, path, summary, parameters):
    route, found = TABLE.match(method, path)
    assert route.summary == summary
    assert found == parameters


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "predict",
        "/predict/",
        "/predict//",
        "/predict/m/",
        "/predict/m/versions/",
        "/predict/m/x/2",
        "/axb",
        "/PREDICT",
    ],
)
def test_any_other_path_is_not_found(path):
    with pytest.raises(NotFound, match="GET /docs"):
        TABLE.match("POST", path)


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/predict/", "/predict"),
        ("/predict/m/", "/predict/m"),
        ("//predict//M", "/predict/M"),
        ("/Predict/m", "/predict/m"),
        ("/PREDICT/m/Versions/2/", "/predict/m/versions/2"),
        ("predict", "/predict"),
    ],
)
def test_a_path_that_is_nearly_one_is_told_which_was_meant(path, meant):
    with pytest.raises(NotFound, match=f"perhaps '{meant}' was meant; GET /docs"):
        TABLE.match("POST", path)


@pytest.mark.parametrize("path", ["", "/", "/axb", "/predict/m/x/2", "/predict/m/versions"])
def test_a_path_that_is_like_none_gets_no_hint(path):
    with pytest.raises(NotFound) as caught:
        TABLE.match("POST", path)
    assert "perhaps" not in str(caught.value)


def test_a_template_is_no_path():
    assert TABLE.match("POST", "/predict/{model}")[1] == {"model": "{model}"}


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [("GET", "/predict", "POST"), ("PUT", "/predict/m", "GET, HEAD, POST"), ("OPTIONS", "/a.b", "GET, HEAD")],
)
def test_another_method_is_told_which_there_are(method, path, allow):
    with pytest.raises(MethodNotAllowed) as caught:
        TABLE.match(method, path)
    assert caught.value.headers() == {"Allow": allow}
