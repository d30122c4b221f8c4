import re
import shutil
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.frontend.pages.docs import docs_page
from tests.service.protocols.picture_models import picture_models
from tests.service.support import PAIR, SETTINGS, NumpyModels, app_of, call, models, pair, running, served


class Reader(HTMLParser):
    """Notes every tag and its attributes."""

    def __init__(self):
        super().__init__()
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def page(behind=None, host="models.example:8000"):
    return docs_page(behind or models(), SETTINGS, "http", host)


def commands(text):
    return [unescape(block) for block in re.findall(r"<pre>(.*?)</pre>", text, re.DOTALL)]


def test_the_page_is_served_as_html_that_may_load_nothing():
    reply = call(app_of(), "GET", "/docs", headers={"host": "models.example"})
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert reply.headers["content-security-policy"] == "default-src 'none'; style-src 'unsafe-inline'"
    assert b"http://models.example/predict/double" in reply.body


def test_the_page_names_every_model_with_its_signature():
    text = page()
    for model in models().served.values():
        assert f">{model.name}<" in text
        for spec in model.versions[model.default_version].signature.inputs:
            assert str(list(spec.shape)) in text


def test_the_page_loads_nothing():
    reader = Reader()
    reader.feed(page())
    tags = {tag for tag, _ in reader.tags}
    assert not tags & {"script", "img", "link", "iframe", "object"}
    for _, attributes in reader.tags:
        assert "src" not in attributes
        assert attributes.get("href", "/").startswith("/")


def test_a_model_that_is_not_ready_is_marked():
    behind = models()
    behind.is_ready = False
    behind.served["pair"] = served("pair", ("1", PAIR), ready=False)
    assert page(behind).count("not ready") == 2


@pytest.mark.parametrize("host", ["", "a b", '"><script>', "x" * 300, "$(reboot)"])
def test_a_host_that_is_none_is_not_repeated(host):
    text = page(host=host)
    assert "http://localhost:8000/predict" in text
    assert not host or host not in text


def test_names_cannot_break_out_of_the_page_or_of_a_command():
    name = "</pre><script>'\"$(touch x)`&"
    signature = Signature((TensorSpec(name, "FP32", (-1, 2)),), (TensorSpec(name, "FP32", (-1, 2)),))
    behind = NumpyModels({}, {name: served(name, ("1", signature))})
    text = page(behind)
    reader = Reader()
    reader.feed(text)
    assert "script" not in {tag for tag, _ in reader.tags}
    for command in commands(text):
        # As a shell splits it, the name is inside one word.
        words = subprocess.run(
            [
                "bash",
                "-c",
                f"curl() {{ printf '%s\\0' \"$@\"; }}; python3() {{ :; }}; head() {{ :; }}; {command}",
            ],
            capture_output=True,
            check=True,
            cwd="/",
        ).stdout
        assert b"$(touch x)" not in words.replace(name.encode(), b"")
    assert not Path("/x").exists()


@pytest.mark.skipif(shutil.which("curl") is None, reason="the page's examples call curl")
def test_every_command_on_the_page_is_answered(tmp_path):
    behind = models()
    two = Signature((TensorSpec("a", "FP32", (-1, 2)),), PAIR.outputs)
    behind.served["several"] = served("several", ("1", two))
    behind.functions["several", "1"] = lambda inputs: pair({**inputs, "b": np.zeros(len(inputs["a"]), "i8")})
    wide = Signature((TensorSpec("a", "FP32", (-1, 99)), TensorSpec("b", "FP32", (-1, 99))), PAIR.outputs)
    behind.served["wide"] = served("wide", ("1", wide))
    with running(app_of(behind)) as port:
        found = commands(page(behind, f"127.0.0.1:{port}"))
        assert len(found) == 13
        # curl's -f makes an error answer fail the command; python3 must be one that has numpy.
        script = "\n".join(command for command in found if "[...]" not in command)
        script = script.replace("curl ", "curl -sSf ").replace("python3 ", f"{sys.executable} ")
        done = subprocess.run(
            ["bash", "-ec", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 0, done.stderr
    assert '"outputs":{"y":[[0.0,0.0,0.0]]}' in done.stdout


def test_model_that_takes_pictures_shows_how_one_is_sent():
    text = unescape(page(picture_models()))
    assert "--data-binary @photo.jpg \\\n  'http://models.example:8000/predict/colours?top=5'" in text
    assert "/predict/arrays?top=5" not in text


def test_pictures_and_labels_are_in_the_openapi_document():
    document = call(app_of(), "GET", "/openapi.json").json()
    post = document["paths"]["/predict/{model}"]["post"]
    assert post["requestBody"]["content"].keys() >= {"image/jpeg", "image/png", "multipart/form-data"}
    assert "image/jpeg" not in post["responses"]["200"]["content"]
    assert "top" in [parameter["name"] for parameter in post["parameters"]]
    assert "top" in document["components"]["schemas"]["Outputs"]["properties"]
