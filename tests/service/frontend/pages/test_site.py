"""The page at /docs as files: what the browser is told of them, and what they may not hold. How it works in a browser:
tests/e2e/test_docs_page.py."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from foldserve.service.frontend.pages import site
from tests.service.support import app_of, call

FOLDER = Path(site.__file__).parent / "site"
SCRIPTS = sorted(FOLDER.glob("*.js"))


class Reader(HTMLParser):
    """Notes every tag and its attributes."""

    def __init__(self):
        super().__init__()
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_the_page_may_load_its_own_files_and_nothing_else():
    reply = call(app_of(), "GET", "/docs")
    assert (reply.status, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = dict(part.split(" ", 1) for part in reply.headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"


def test_everything_that_the_page_names_is_served_beside_it():
    app, reader = app_of(), Reader()
    reader.feed(call(app, "GET", "/docs").body.decode())
    named = [tag[1].get("src") or tag[1].get("href") for tag in reader.tags]
    files = [name for name in named if name and name.startswith("docs/")]
    assert len(files) == 3
    for path in SCRIPTS:
        files += [f"docs/{name}" for name in re.findall(r'from "\./([\w.]+)"', path.read_text())]
    for name in files:
        reply = call(app, "GET", f"/{name}")
        assert reply.status == 200
        assert reply.headers["x-content-type-options"] == "nosniff"
    for _, attributes in reader.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        # Relative, so that the page works behind a proxy that serves it under a path of its own.
        assert not (attributes.get("src") or attributes.get("href") or "").startswith(("/", "http"))


@pytest.mark.parametrize("name", ["page.html", "nothing.js", "..", "%2e%2e%2fsite.py", "__init__.py"])
def test_no_other_file_is_served(name):
    assert call(app_of(), "GET", f"/docs/{name}").error() == (404, "not_found")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_script_makes_elements_of_text(path):
    text = path.read_text()
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
    )
    assert "https://" not in text
