"""The quick reader of heads against httptools' parser: whatever it accepts, that parser reads the same way."""

import random
from typing import Any

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldserve.service.codecs import BodyType
from foldserve.service.codecs.fast.repeat_cache import RepeatCache
from foldserve.service.engine.admission import Bounds
from foldserve.service.engine.model_queue import ModelQueue
from foldserve.service.frontend.http1.heads.cache import Head, PredictRoute, field_of, head_of
from foldserve.service.frontend.http1.heads.reader import HeadReader
from foldserve.service.frontend.http1.heads.rules import refusal
from foldserve.service.inference.plan import BodyLimit, RequestPlan
from foldserve.service.ipc.model_table import ModelKey
from foldserve.service.ipc.slots.tensor_layout import TensorLayout
from foldserve.service.ipc.ticket_queue import TicketQueue, TicketWriter
from foldserve.service.protocols.predict import PREDICT
from tests.service.engine_rig import FIXED

QUEUE = ModelQueue(
    ModelKey(0, 0, "m0", "1"),
    TensorLayout(FIXED),
    Bounds(8, 1000),
    timeout_s=1.0,
    instances=1,
    max_batch_size=8,
    writers=[TicketWriter(TicketQueue().levels[0])],
)
PLANS = {
    kind: RequestPlan(
        QUEUE, protocol, protocol, print, BodyLimit(500 if kind is BodyType.JSON else 1000, "--limit")
    )
    for kind, protocol in PREDICT.items()
}
ROUTES = [PredictRoute("/predict/m0", query, "/predict/{model}", PLANS) for query in ("", "?version=1")]


class Parsed:
    """A request as httptools reads it."""

    def __init__(self, data: bytes) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.url = self.body = b""
        self.heads = self.messages = 0
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.error: Exception | None = None
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.error = error

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.heads += 1

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.messages += 1


def said(head: Head | None) -> tuple[Any, ...] | None:
    if head is None:
        return None
    return (
        *(head.target, head.plan, head.length, head.request_id, head.timeout_ms, head.keep_alive, head.old),
        *(head.is_rows, head.media_type, head.level.index),
    )


def agree(reader: HeadReader, data: bytes) -> bool:
    """Whether the head is accepted; asserts that the parser reads the same then."""
    end = data.find(b"\r\n\r\n") + 4
    if end < 4:
        return False
    head = reader.read(data, end)
    assert said(HeadReader(ROUTES).read(data, end)) == said(head)  # whatever was read before
    if head is None:
        return False
    parsed = Parsed(data[:end])
    if isinstance(parsed.error, httptools.HttpParserUpgrade):
        # The offer of another protocol is not taken up: the protocol has such a head read again without it.
        lines = data[:end].split(b"\r\n")
        data = b"\r\n".join([line for line in lines if not line.lower().startswith(b"upgrade:")])
        end = len(data)
        parsed = Parsed(data)
    parser = parsed.parser
    assert parsed.error is None
    assert (parsed.heads, parsed.messages) == (1, 0)
    route: Any = head.target
    assert (parser.get_method(), parsed.url) == (b"POST", route.target)
    assert parser.get_http_version() == ("1.0" if head.old else "1.1")
    assert parser.should_keep_alive() == head.keep_alive
    assert refusal(b"POST", parser.get_http_version(), b"HTTP", parsed.headers) is None
    fields = [field_of(name, value) for name, value in parsed.headers]
    assert said(head_of(head.target, head.old, fields)) == said(head)
    whole = Parsed(data[:end] + b"x" * (head.length - 1))
    assert (whole.error, whole.messages, whole.body) == (None, 0, b"x" * (head.length - 1))
    whole.parser.feed_data(b"x")
    assert whole.messages == 1
    return True


FIRST = [
    *(b"POST /predict/m0 HTTP/1.1", b"POST /predict/m0 HTTP/1.0", b"POST /predict/m0?version=1 HTTP/1.1"),
    *(b"POST /predict/m0 HTTP/1.2", b"POST  /predict/m0 HTTP/1.1", b"GET /predict/m0 HTTP/1.1"),
]
NEEDED = [b"Host: test", b"Content-Type: application/json", b"Content-Length: 12"]
LINES = [
    *(b"host:test", b"Host: ", b"HOST: [::1]:80", b"Host: a b", b"Host: a/b", b"Host: x,y", b"Host:"),
    *(
        b"content-type: application/json; charset=utf-8",
        b"Content-Type: text/plain",
        b"content-type:application/json",
    ),
    *(b"Content-Type: application/octet-stream", b"Content-Type: application/x-npy", b"Content-Length: 8"),
    *(
        b"content-length: 012",
        b"Content-Length: +2",
        b"Content-Length: 1,2",
        b"Content-Length: 1 2",
        b"Content-Length:",
    ),
    *(
        b"Content-Length: 99999999999999999999",
        b"Content-Length: 0",
        b"Content-Length: 501",
        b"Content-Length : 3",
    ),
    *(b"Accept: */*", b"Accept: application/json, text/plain, */*", b"Accept: application/x-npy", b"Accept:"),
    *(
        b"Accept: text/html",
        b"Connection: close",
        b"Connection: keep-alive",
        b"connection: Keep-Alive, TE",
        b"Connection:",
    ),
    *(
        b"Connection: close, keep-alive",
        b"Connection: Upgrade, HTTP2-Settings",
        b"Connection: upgrade, close",
    ),
    *(
        b"Upgrade: h2c",
        b"Upgrade: websocket",
        b"HTTP2-Settings: AAEAAEAA",
        b"Proxy-Connection: close",
        b"TE: trailers",
    ),
    *(
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding : chunked",
        b"transfer-encoding: identity",
        b"Trailer: x",
    ),
    *(
        b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        b"Cookie: a=b; c=d",
        b"X-Empty:",
    ),
    *(
        b"Authorization: Bearer abc.def-ghi",
        b"X-Api-Key: 1",
        b"X-Request-Id: one",
        b"X-Request-Id: ",
        b"X-Timeout-Ms: 5",
    ),
    *(
        b"X-Priority: 0",
        b"X-Priority: 1",
        b"X-Priority: 2",
        b"X-Priority: -1",
        b"X-Priority:",
    ),
    *(
        b"X-Timeout-Ms:",
        b"Expect: 100-continue",
        b"Content-Encoding: gzip",
        b"X-Tensor-Shape: 1",
        b"X: a\tb",
        b"X: \ta",
    ),
    *(
        b" folded",
        b"\tfolded",
        b"no colon",
        b": no name",
        b"X Y: z",
        b"X: a\rb",
        b"X: a\nb",
        b"X: \x00",
        b"X: \x7f",
    ),
    *(
        "X: größe".encode(),
        b"X: \xff",
        b"X:  two",
        b"X: after ",
        b"X: after\t",
        b"X\xe9: y",
        b"Keep-Alive: 300",
        b'X": y',
    ),
]
BYTES = b"\r\n\t :,;\x00\x0b\x0c\x7f\x80\xffAaHhTt019-_/?%+\"'"


def mutated(chance: random.Random, head: bytes) -> bytes:
    data = bytearray(head)
    for _ in range(chance.choice((0, 0, 0, 1, 1, 2, 4))):
        at = chance.randrange(len(data))
        what = chance.randrange(4)
        if what == 0:
            data[at] = chance.choice(BYTES)
        elif what == 1:
            data.insert(at, chance.choice(BYTES))
        elif what == 2 and len(data) > 1:
            del data[at]
        else:
            other = chance.randrange(len(data))
            data[at:at] = data[other : other + chance.randrange(12)]
    return bytes(data)


def test_whatever_is_accepted_of_mutated_heads_is_what_the_parser_reads() -> None:
    chance = random.Random(8)
    reader = HeadReader(ROUTES)
    accepted = 0
    for _ in range(40_000):
        lines = [*NEEDED, *chance.choices(LINES, k=chance.choice((0, 1, 1, 2, 3)))]
        if chance.random() < 0.2:
            lines.remove(chance.choice(lines))
        chance.shuffle(lines)
        head = b"\r\n".join([chance.choices(FIRST, (9, 3, 3, 1, 1, 1))[0], *lines, b"", b""])
        accepted += agree(reader, mutated(chance, head) + chance.choice((b"", b"body", b"\r\n\r\n")))
    assert accepted > 4_000


@settings(max_examples=300, deadline=None)
@given(
    lines=st.lists(
        st.one_of(
            st.sampled_from(LINES),
            st.binary(max_size=30),
            st.tuples(st.binary(min_size=1, max_size=6), st.binary(max_size=9)).map(b": ".join),
        ),
        max_size=6,
    )
)
def test_whatever_is_accepted_of_any_lines_is_what_the_parser_reads(lines: list[bytes]) -> None:
    head = b"\r\n".join([FIRST[0], *NEEDED, *lines, b"", b""])
    agree(HeadReader(ROUTES), head)


USUAL = {
    "requests": [b"User-Agent: python-requests/2", b"Accept-Encoding: gzip", b"Accept: */*", b"Connection: keep-alive"],
    "axios": [b"Accept: application/json, text/plain, */*", b"User-Agent: axios/1.7", b"Connection: close"],
    "Java": [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEAAEAAAAIAAAAB"],
    ".NET": [b"traceparent: 00-80e1afed08e019fc1110464cfa66635c-7a085853722dc6d2-01"],
    "gateway": [b"X-Request-Id: 5", b"X-Forwarded-For: 10.0.0.1", b"Authorization: Bearer a.b.c", b"Cookie: a=b"],
    "trailer and te": [b"TE: trailers", b"Trailer: x-checksum"],
    "time": [b"X-Timeout-Ms: 250"],
    "priority": [b"X-Priority: 1"],
}  # fmt: skip


@pytest.mark.parametrize("name", USUAL)
@pytest.mark.parametrize("first", FIRST[:3], ids=["1.1", "1.0", "query"])
def test_the_usual_heads_are_accepted(name: str, first: bytes) -> None:
    head = b"\r\n".join([first, *NEEDED, *USUAL[name], b"", b""])
    assert agree(HeadReader(ROUTES), head)


@pytest.mark.parametrize(
    ("given", "level"), [(b"1", 0), (b"2", 1), (b"003", 2), (b"0", 1), (b"", None), (b"4", None)]
)
def test_a_priority_is_the_level_of_the_queue_or_for_others_to_refuse(
    given: bytes, level: int | None
) -> None:
    pipes = TicketQueue(3).levels
    writers = [TicketWriter(pipe) for pipe in pipes]
    queue = ModelQueue(QUEUE.key, QUEUE.layout, QUEUE.bounds, 1.0, 1, 8, writers, default_level=1)
    plans = {kind: RequestPlan(queue, of.reads, of.writes, print, of.limit) for kind, of in PLANS.items()}
    route = PredictRoute("/predict/m0", "", "/predict/{model}", plans)
    data = b"\r\n".join([FIRST[0], *NEEDED, b"X-Priority: " + given, b"", b""])
    head = HeadReader([route]).read(data, len(data))
    assert level == (None if head is None else head.level.index)


@pytest.mark.parametrize("value", [b"application/json; charset=utf-8", b"application/json;charset=UTF-8"])
def test_a_charset_does_not_matter(value: bytes) -> None:
    head = b"\r\n".join([FIRST[0], NEEDED[0], NEEDED[2], b"Content-Type: " + value, b"", b""])
    assert agree(HeadReader(ROUTES), head)


# What is kept ------------------------------------------------------------------------------------------


def test_what_came_twice_is_kept_and_what_comes_once_crowds_out_nothing() -> None:
    seen: RepeatCache[int] = RepeatCache(most=8, largest=10)
    for _ in range(2):
        seen.add(b"constant", 1)
    for number in range(1000):
        seen.add(b"%d" % number, number)
    assert seen.kept == {b"constant": 1}
    assert len(seen.once) <= 2


def test_what_is_kept_is_bounded_in_number_and_length() -> None:
    seen: RepeatCache[int] = RepeatCache(most=8, largest=10)
    for number in range(1000):
        for _ in range(2):
            seen.add(b"%d" % number, number)
            seen.add(b"%011d" % number, number)
    assert 0 < len(seen.kept) <= 8
    assert all(len(key) <= 10 for key in seen.kept)


def test_a_head_with_an_id_of_its_own_is_not_kept_and_its_other_lines_are() -> None:
    reader = HeadReader(ROUTES)
    for number in range(5000):
        lines = [FIRST[0], *NEEDED, b"X-Request-Id: %d" % number, b"traceparent: %d" % number, b"", b""]
        data = b"\r\n".join(lines)
        head = reader.read(data, len(data))
        assert head is not None
        assert head.request_id == b"%d" % number
    assert not reader.heads.kept
    assert set(reader.lines.kept) == set(NEEDED)
    assert len(reader.lines.once) <= reader.lines.most


def test_a_head_that_came_before_frames_another_length_by_its_own_line() -> None:
    reader = HeadReader(ROUTES)
    lengths = []
    for length in (12, 12, 12, 345, 12):
        data = b"\r\n".join([FIRST[0], *NEEDED[:2], b"Content-Length: %d" % length, b"", b""])
        head = reader.read(data, len(data))
        assert head is not None
        lengths.append(head.length)
    assert lengths == [12, 12, 12, 345, 12]
