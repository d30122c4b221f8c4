import pytest

from foldserve.service.errors import BadRequest
from foldserve.service.frontend.http1.heads.rules import parse_target, refusal

HOST = (b"host", b"a")


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/predict/m", "/predict/m", b""),
        (b"/predict/%64?a=b", "/predict/d", b"a=b"),
        (b"//predict/m", "//predict/m", b""),
        (b"http://x/health?a", "/health", b"a"),
        (b"http://u:p@x:8000/health", "/health", b""),
        (b"http://[::1]:80/health", "/health", b""),
        (b"/a#f", "/a", b""),
    ],
)
def test_a_path_and_a_url_with_a_path_are_targets(target: bytes, path: str, query: bytes) -> None:
    found = parse_target(target)
    assert (found.path, found.query) == (path, query)


@pytest.mark.parametrize(
    "target",
    [
        *(b"", b"*", b"?a", b"x", b"x:443", b"http://x", b"http://x?a=1", b"http:///", b"http:///health"),
        *(b"http://[::1", b"http://x:99999/health", b"http://", b"http:", b"/\xc3\xa9", b"#"),
    ],
)
def test_whatever_has_no_path_is_refused(target: bytes) -> None:
    with pytest.raises(BadRequest, match="expected a path"):
        parse_target(target)


@pytest.mark.parametrize(
    ("version", "protocol", "headers"),
    [
        ("1.1", b"HTTP", [HOST]),
        ("1.1", b"", [HOST]),
        ("1.0", b"HTTP", []),
        ("1.1", b"HTTP", [(b"host", b"")]),
        ("1.1", b"HTTP", [(b"host", b"[2001:db8::1]:8000")]),
        ("1.1", b"HTTP", [(b"host", b"under_score.example:8000 ")]),
        ("1.1", b"HTTP", [HOST, (b"transfer-encoding", b"Chunked")]),
    ],
)
def test_what_http_allows_is_not_refused(
    version: str, protocol: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    assert refusal(b"POST", version, protocol, headers) is None


@pytest.mark.parametrize(
    ("method", "version", "protocol", "headers", "status"),
    [
        (b"CONNECT", "1.1", b"HTTP", [HOST], 400),
        (b"POST", "1.1", b"HTTP", [], 400),
        (b"POST", "1.1", b"HTTP", [HOST, HOST], 400),
        (b"POST", "1.0", b"HTTP", [HOST, HOST], 400),
        (b"POST", "1.1", b"HTTP", [(b"host", b"a b")], 400),
        (b"POST", "1.1", b"HTTP", [(b"host", b"http://a/")], 400),
        (b"POST", "1.1", b"HTTP", [HOST, (b"transfer-encoding", b"gzip, chunked")], 501),
        (b"POST", "1.1", b"HTTP", [HOST, (b"transfer-encoding", b"identity")], 501),
        (b"POST", "1.1", b"HTTP", [HOST, *[(b"transfer-encoding", b"chunked")] * 2], 501),
        (b"POST", "1.0", b"HTTP", [HOST, (b"transfer-encoding", b"chunked")], 400),
        (b"POST", "2.0", b"HTTP", [HOST], 505),
        (b"POST", "0.9", b"HTTP", [HOST], 505),
        (b"POST", "1.0", b"RTSP", [HOST], 505),
        (b"SOURCE", "1.0", b"ICE", [HOST], 505),
    ],
)
def test_what_http_forbids_is_refused_with_its_status(
    method: bytes, version: str, protocol: bytes, headers: list[tuple[bytes, bytes]], status: int
) -> None:
    error = refusal(method, version, protocol, headers)
    assert error is not None
    assert error.status == status
    assert "; expected" in str(error) or "; ask" in str(error) or "; send" in str(error)
