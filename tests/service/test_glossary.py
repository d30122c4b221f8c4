"""docs/glossary.md: every word has a meaning and a place that exists."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "glossary.md").read_text()
ROWS = re.findall(r"^\| ([^|]+) \| ([^|]+) \| `([^|`]+)` \|$", TEXT, re.MULTILINE)
TABLES = 4
CONTRACT = {
    *("network", "artifact", "repository", "row", "request", "batch", "bucket"),
    *("API server", "worker", "instance", "arena", "slot", "ticket"),
}
"""The words that the contracts use."""


def test_every_line_of_its_tables_has_a_word_a_meaning_and_a_place() -> None:
    lines = [line for line in TEXT.splitlines() if line.startswith("|")]
    assert len(ROWS) == len(lines) - 2 * TABLES


def test_every_file_that_it_names_exists() -> None:
    assert {place for _, _, place in ROWS if not (ROOT / place).exists()} == set()


def test_every_word_is_explained_once() -> None:
    words = [word for words, _, _ in ROWS for word in words.split(", ")]
    assert len(words) == len(set(words))
    assert set(words) >= CONTRACT


def test_the_readme_and_contributing_lead_to_it() -> None:
    for page in ("README.md", "CONTRIBUTING.md"):
        assert "(docs/glossary.md)" in (ROOT / page).read_text()
