"""The site that `make docs` builds from the pages, as they are in the repository."""

import html
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.support import ROOT

LOADED = re.compile(r"<(?:script|img|iframe|link)\b[^>]*>")
ELSEWHERE = re.compile(r"(?:https?:)?//")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built strictly: a link or an anchor that leads nowhere and a page that is in no menu fail."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def articles(site: Path) -> dict[str, str]:
    """The text of each page of ours, as HTML, without its code."""
    found = {}
    for page in sorted(site.rglob("*.html")):
        article = re.search(r"<article.*?</article>", page.read_text(), re.DOTALL)
        if article is not None:
            found[str(page.relative_to(site))] = re.sub(
                r"<(pre|code)\b.*?</\1>", "", article[0], flags=re.DOTALL
            )
    return found


def test_every_page_is_in_the_site(site: Path) -> None:
    pages = {f"docs/{page.stem}.html" for page in (ROOT / "docs").glob("*.md")}
    pages |= {"index.html", "deploy/index.html", "benchmarks/index.html", "SECURITY.html", "CHANGELOG.html"}
    assert pages <= articles(site).keys()


def test_lists_and_tables_of_the_pages_are_lists_and_tables_in_the_site(site: Path) -> None:
    # The hosting site's Markdown takes a list right behind a line of text, or one indented by two; this one does not.
    left = [
        f"{page}: {text.strip()[:80]}"
        for page, article in articles(site).items()
        for text in re.findall(r"<(?:p|li)>(.*?)</(?:p|li)>", article, re.DOTALL)
        if re.search(r"^\s*(?:[-*|]|\d+\.) ", html.unescape(text).strip(), re.MULTILINE)
    ]
    assert left == []


def test_the_site_loads_nothing_from_another_host(site: Path) -> None:
    loaded = {
        found[0]
        for page in site.rglob("*.html")
        for found in LOADED.finditer(page.read_text())
        if ELSEWHERE.search(found[0])
    }
    loaded |= {
        address
        for style in site.rglob("*.css")
        for address in re.findall(r"url\(([^)]*)\)", style.read_text())
        if ELSEWHERE.match(address.strip("\"'"))
    }
    assert loaded == set()
