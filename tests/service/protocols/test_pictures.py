"""Pictures as bodies of POST /predict and in rows of KServe v1, through the ASGI application without a socket."""

import asyncio
import base64
import gzip
import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from foldserve.service.artifact.pictures import decode
from foldserve.service.codecs import protocol
from foldserve.service.errors import ServiceError
from foldserve.service.protocols.predict import PICTURE
from tests.service.protocols.picture_models import (
    ANY_SIZE,
    COLOURS,
    FREE,
    IMAGE,
    LABELS,
    photo,
    picture_models,
    saved,
)
from tests.service.support import Reply, Served, app_of, call_async

JPEG, PNG = "image/jpeg", "image/png"
NOISE = np.random.default_rng(0).integers(0, 256, (30, 47, 3), dtype=np.uint8)
BOUNDARY = "----of a test"


@dataclass
class Asked:
    """An application on one event loop, so that all requests go through one codec process."""

    app: Served
    runner: asyncio.Runner

    def post(self, path: str, body: bytes, **headers: str) -> Reply:
        named = {name.replace("_", "-"): said for name, said in headers.items()}
        reply = self.runner.run(call_async(self.app, "POST", path, body, named))
        assert reply is not None
        return reply


@pytest.fixture(scope="module")
def app():
    with asyncio.Runner() as runner:
        asked = Asked(app_of(picture_models(), default_model="colours"), runner)
        yield asked
        runner.run(asked.app.end())


def send(app: Asked, body: bytes, kind: str, path: str = "/predict", **headers: str) -> Reply:
    return app.post(path, body, content_type=kind, **headers)


def form(*fields: tuple[str, bytes]) -> tuple[bytes, str]:
    """A form with these fields, and its Content-Type."""
    parts = [
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + content + b"\r\n"
        for head, content in fields
    ]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode(), f'multipart/form-data; boundary="{BOUNDARY}"'


FILE = 'name="file"; filename="cat.jpg"'


@pytest.mark.parametrize(("kind", "saved_as"), [(JPEG, "JPEG"), (PNG, "PNG"), ("IMAGE/PNG; q=1", "PNG")])
def test_picture_is_answered_as_the_array_that_it_is_decoded_to(app, kind, saved_as):
    body = saved(Image.fromarray(NOISE), saved_as)
    reply = send(app, body, kind)
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    y = decode(body, IMAGE).mean(axis=(0, 1), dtype="f4")
    assert reply.json() == {
        "model": "colours",
        "version": "1",
        "outputs": {"y": [pytest.approx(y, rel=1e-6)]},
    }
    finished = app.app.metrics.finished[-1]
    assert (finished["protocol"], finished["status"], finished["rows"]) == ("picture", 200, 1)


def test_top_has_the_labels_of_the_largest_scores(app):
    reply = send(app, saved(photo(), "PNG"), PNG, "/predict/colours?top=2").json()
    assert reply["top"] == [{"label": "red", "score": 200.0}, {"label": "blue", "score": 100.0}]
    assert reply["outputs"] == {"y": [[200.0, 10.0, 100.0]]}


def test_a_form_with_one_file_is_a_picture_and_nothing_else_is(app):
    body = saved(photo(), "PNG")
    assert send(app, *form((FILE, body))).json()["outputs"] == {"y": [[200.0, 10.0, 100.0]]}
    assert send(app, *form((FILE, body)), path="/predict?top=1").json()["top"] == [
        {"label": "red", "score": 200.0}
    ]
    whole, kind = form((FILE, body))
    for bad, says in (
        (form(), "the form has no field"),
        (form((FILE, body), ('name="more"', b"1")), "several fields"),
        (form((FILE, body), (FILE, body), (FILE, body), (FILE, body)), "several fields"),
        ((whole[:-8], kind), "ends before its last boundary"),
        ((b"", kind), "ends before its last boundary"),
        ((whole.replace(b"\r\n\r\n", b"\r\n", 1)[:90], kind), "ends before"),
        ((f"--{BOUNDARY}\r\nno headers end\r\n--{BOUNDARY}--".encode(), kind), "no empty line"),
        ((whole, "multipart/form-data"), "expected the boundary"),
        ((whole, 'multipart/form-data; boundary="other"'), "ends before"),
    ):
        reply = send(app, *bad)
        assert reply.error() == (400, "bad_request")
        assert says in reply.json()["error"], reply.json()


def test_answers_may_be_arrays_and_compressed_bodies_are_inflated(app):
    body = saved(photo(), "PNG")
    raw = send(app, gzip.compress(body), PNG, accept="application/octet-stream", content_encoding="gzip")
    assert np.frombuffer(raw.body, "<f4").tolist() == [200.0, 10.0, 100.0]
    assert send(app, body, PNG, "/predict?top=1", accept="application/x-npy").error() == (
        406,
        "not_acceptable",
    )


@pytest.mark.parametrize(
    ("body", "kind", "path", "error", "says"),
    [
        (b"", JPEG, "", (400, "bad_picture"), "the body is empty; expected the bytes of a JPEG file"),
        (b"hello", PNG, "", (400, "bad_picture"), "the body is not a PNG picture"),
        (
            saved(photo(), "PNG"),
            JPEG,
            "",
            (400, "bad_picture"),
            "is a PNG picture, and the request says JPEG",
        ),
        (saved(photo()), PNG, "", (400, "bad_picture"), "is a JPEG picture, and the request says PNG"),
        (saved(photo())[:300], JPEG, "", (400, "bad_picture"), "damaged or cut short, as by `curl -d @file`"),
        (
            saved(photo()),
            "",
            "",
            (415, "unsupported_media_type"),
            "x-npy, image/jpeg, image/png: send the one",
        ),
        (
            saved(photo()),
            "application/json",
            "",
            (400, "bad_json"),
            "the body is a JPEG picture and not JSON",
        ),
        (
            saved(photo()),
            "image/webp",
            "",
            (415, "unsupported_media_type"),
            "expected image/jpeg or image/png",
        ),
        (
            saved(photo()),
            JPEG,
            "/arrays",
            (415, "unsupported_media_type"),
            "export the network with an ImageInput",
        ),
        (saved(photo()), JPEG, "/nobody", (404, "unknown_model"), "is not served"),
        (saved(photo()), JPEG, "?top=0", (400, "bad_request"), "top is '0'; expected how many"),
        (saved(photo()), JPEG, "?top=4097", (400, "bad_request"), "1 to 4096"),
        (saved(photo()), JPEG, "?top=%D9%A5", (400, "bad_request"), "expected how many"),
        (saved(photo()), JPEG, "/two?top=1", (400, "bad_request"), "choose one with &output=y"),
    ],
)
def test_what_is_no_such_picture_is_refused_with_the_way(app, body, kind, path, error, says):
    reply = send(app, body, kind, f"/predict{path}")
    assert reply.error() == error
    assert says in reply.json()["error"]


def test_top_goes_with_every_body_whose_answer_is_json(app):
    rows = np.stack([np.full((4, 6, 3), (1, 2, 3)), np.full((4, 6, 3), (9, 8, 7))]).astype(np.uint8)
    best = [[{"label": "blue", "score": 3.0}], [{"label": "red", "score": 9.0}]]
    as_json = json.dumps({"inputs": rows.tolist()}).encode()
    assert send(app, as_json, "application/json", "/predict?top=1").json()["top"] == best
    raw = send(app, rows.tobytes(), "application/octet-stream", "/predict?top=1", accept="application/json")
    assert raw.json()["top"] == best
    one = json.dumps({"inputs": rows[:1].tolist()}).encode()
    assert send(app, one, "application/json", "/predict?top=9").json()["top"] == [
        {"label": label, "score": score}
        for label, score in zip(reversed(LABELS), (3.0, 2.0, 1.0), strict=True)
    ]
    assert "top" not in send(app, one, "application/json").json()


def test_without_labels_columns_are_called_by_their_numbers(app):
    reply = send(app, saved(photo(), "PNG"), PNG, "/predict/free?top=2")
    assert reply.json()["top"] == [{"label": "0", "score": 200.0}, {"label": "2", "score": 100.0}]
    of_one = send(app, saved(photo(), "PNG"), PNG, "/predict/two?output=z&top=1")
    assert of_one.json()["top"] == [{"label": "1", "score": -10.0}]


def test_more_labels_than_an_answer_may_have_are_refused_before_the_model_runs(app):
    rows = np.zeros((820, 4, 6, 3), np.uint8)
    before = len(app.app.models.calls)
    reply = send(app, rows.tobytes(), "application/octet-stream", "/predict?top=5", accept="application/json")
    assert reply.error() == (400, "bad_request")
    assert "top asks for 5 labels of each of 820 rows" in reply.json()["error"]
    assert len(app.app.models.calls) == before


def predict(app: Asked, document: Any, model: str = "colours") -> Reply:
    return app.post(f"/v1/models/{model}:predict", json.dumps(document).encode())


def b64(body: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(body).decode()}


def test_rows_of_kserve_v1_may_be_pictures(app):
    red, green = b64(saved(photo(), "PNG")), b64(saved(photo((0, 90, 0), (7, 9)), "PNG"))
    expected = {"predictions": [[200.0, 10.0, 100.0], [0.0, 90.0, 0.0]]}
    assert predict(app, {"instances": [red, green]}).json() == expected
    assert predict(app, {"instances": [{"pictures": red}, {"pictures": green}]}).json() == expected
    assert predict(app, {"inputs": [red]}).json() == {"outputs": [[200.0, 10.0, 100.0]]}
    assert predict(app, {"inputs": {"pictures": [red]}}).json() == {"outputs": [[200.0, 10.0, 100.0]]}
    rows = np.full((1, 4, 6, 3), 7).tolist()
    assert predict(app, {"instances": rows}).json() == {"predictions": [[7.0, 7.0, 7.0]]}


@pytest.mark.parametrize(
    ("rows", "model", "code", "says"),
    [
        ([{"b64": "%%%%"}], "colours", "bad_picture", "picture 0 is not base64"),
        ([{"b64": 7}], "colours", "bad_picture", "picture 0: expected"),
        ([b64(saved(photo())), 7], "colours", "bad_picture", "picture 1: expected"),
        ([{"b64": "AAAA", "more": 1}], "colours", "bad_picture", "picture 0: expected"),
        (
            [b64(saved(photo())), b64(b"GIF89a")],
            "colours",
            "bad_picture",
            "picture 1: the body is not a JPEG or PNG",
        ),
        ([b64(saved(photo()))], "arrays", "bad_tensor", "export the network with an ImageInput"),
        (
            [b64(saved(photo(size=(5, 5)))), b64(saved(photo(size=(6, 5))))],
            "free",
            "bad_tensor",
            "different shapes",
        ),
    ],
)
def test_rows_that_are_no_pictures_are_refused_with_their_place(app, rows, model, code, says):
    reply = predict(app, {"instances": rows}, model)
    assert reply.error() == (400, code)
    assert says in reply.json()["error"]


WHOLE = [
    saved(Image.fromarray(NOISE)),
    saved(
        Image.fromarray(NOISE),
        progressive=True,
        exif=bytes.fromhex("457869660000") + b"II*\0\x08\0\0\0\x01\0",
    ),
    saved(Image.fromarray(NOISE), "PNG"),
    saved(Image.fromarray(NOISE).convert("P"), "PNG"),
    saved(Image.fromarray(NOISE).convert("CMYK")),
]
VERSIONS = [
    protocol.Served("m", "1", COLOURS, LABELS, IMAGE),
    protocol.Served("m", "1", FREE, (), ANY_SIZE),
]


@settings(max_examples=300)
@given(
    whole=st.sampled_from(WHOLE),
    cut=st.integers(0, 8000),
    changes=st.lists(st.tuples(st.integers(0, 8000), st.binary(min_size=1, max_size=4)), max_size=4),
    as_form=st.booleans(),
    version=st.sampled_from(VERSIONS),
)
def test_any_bytes_become_an_input_or_are_refused_as_the_clients_fault(whole, cut, changes, as_form, version):
    body = bytearray(whole if cut > len(whole) else whole[:cut])
    for at, new in changes:
        body[at % (len(body) + 1) : at % (len(body) + 1) + len(new)] = new
    options = ("JPEG" if whole[:1] == b"\xff" else "PNG", None, "1")
    if as_form:
        framed, _ = form((FILE, bytes(body)))
        body, options = bytearray(framed), (None, BOUNDARY, None)
    refused = None
    try:
        parsed = PICTURE.parse(body, version, options)
        assert version.signature.check_inputs(parsed.inputs) == 1
    except ServiceError as error:
        refused = error
    if refused is not None:
        assert 400 <= refused.status < 500
        assert re.search("expected|may be damaged|send|save", str(refused))
        assert len(str(refused)) < 500


@settings(max_examples=100)
@given(pixels=hnp.arrays(np.uint8, (4, 6, 3)), as_form=st.booleans())
def test_every_pixel_of_a_png_is_an_element_of_the_input(pixels, as_form):
    body, options = saved(Image.fromarray(pixels), "PNG"), ("PNG", None, None)
    if as_form:
        body, _ = form((FILE, body))
        options = (None, BOUNDARY, None)
    parsed = PICTURE.parse(body, VERSIONS[0], options)
    np.testing.assert_array_equal(parsed.inputs["pictures"], pixels[None])
