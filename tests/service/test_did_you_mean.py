from pathlib import Path

import pytest

from foldserve.service.did_you_mean import did_you_mean, similar_folder

KNOWN = ("--port", "--run-limit", "--load-limit", "--max-a", "--max-b", "--max-c", "--max-d")


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("--prot", "; did you mean --port?"),
        ("--load", "; did you mean --load-limit?"),
        ("--nothing", "; none"),
        ("--", "; none"),
        ("-x", "; none"),
        ("x" * 10_000, "; none"),
    ],
)
def test_word_that_begins_a_known_one_or_is_close_to_it_is_answered_with_that(word: str, text: str) -> None:
    assert did_you_mean(word, KNOWN, "none") == text


def test_few_words_that_begin_so_are_all_named_and_of_many_the_closest() -> None:
    assert did_you_mean("max", ("max_rows", "max_bytes")) == "; did you mean max_rows or max_bytes?"
    assert did_you_mean("--max", KNOWN) in [f"; did you mean --max-{one}?" for one in "abcd"]


def test_without_a_close_word_all_are_listed() -> None:
    assert did_you_mean("zzz", ("one", "two")) == "; expected one of one, two"


def test_folder_is_suggested_only_where_one_of_that_name_is_missing(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    assert similar_folder(tmp_path / "model") == f"; did you mean {tmp_path / 'models'}?"
    assert similar_folder(tmp_path / "models") == ""
    assert similar_folder(tmp_path / "gone" / "models") == ""
