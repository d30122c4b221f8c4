"""README and the pages around it say what is there."""

import re

import pytest

from deploy import demo
from tests.deploy.support import ROOT

PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/releasing.md",
    "deploy/README.md",
    "benchmarks/README.md",
    "docs/reliability.md",
    "CHANGELOG.md",
)


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_links_to_exists(page: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text())
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert missing == []


def test_the_readme_shows_the_request_that_the_demo_prints() -> None:
    (request,) = re.findall(r"curl .*", demo.where_to_look(8000))
    assert f"\n{request}\n" in (ROOT / "README.md").read_text()


def test_every_make_target_that_a_page_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    pages = "\n".join((ROOT / page).read_text() for page in PAGES)
    named = set(re.findall(r"(?:^|`)make ([a-z]+)\b", pages, re.MULTILINE))
    assert {"demo", "test", "install", "bench"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
