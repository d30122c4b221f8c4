"""The values that options may have, and one table of them checked at once."""

from typing import Any

import pytest

from foldserve.service.options import (
    Option,
    choice,
    number,
    parse_all,
    parse_boolean,
    parse_folder,
    parse_size,
    whole_number,
)

TABLE = (
    Option("rows", whole_number(1, of="rows"), 8),
    Option("queue.bytes", parse_size),
    Option("level", choice("debug", "info"), "info", expected="a level"),
)


def test_what_is_not_given_has_its_default_and_what_is_given_is_parsed() -> None:
    assert parse_all(TABLE, {"queue.bytes": ("--bytes", "2KiB")}) == (
        {"rows": 8, "queue.bytes": 2048, "level": "info"},
        [],
    )


def test_every_problem_is_reported_with_its_place_its_value_and_what_was_expected() -> None:
    given = {"rows": ("rows in f", 0), "queue.bytes": ("--bytes", "2KB"), "level": ("LEVEL", "x" * 1000)}
    _, (rows, size, level) = parse_all(TABLE, given)
    assert rows == "rows in f is 0; expected a whole number of rows from 1"
    assert size.startswith("--bytes is '2KB'; expected a number of bytes from 1 to 1TiB")
    assert level.endswith("; expected a level")
    assert len(level) < 200


@pytest.mark.parametrize(
    ("parse", "given", "value"),
    [
        (whole_number(0), "10" + "0" * 15, 10**16),
        (number(0, 10, "seconds"), 1e-5, 1e-5),
        (number(0, 10, "seconds"), "2.5", 2.5),
        (number(0, 10, "seconds"), 3, 3.0),
        (parse_boolean, False, False),
        (parse_boolean, "Yes", True),
    ],
)
def test_string_and_what_yaml_makes_of_it_are_taken_alike(parse: Any, given: Any, value: Any) -> None:
    assert parse(given) == value


@pytest.mark.parametrize("given", [float("nan"), float("inf"), -1, "1e3", True, None, [], "٣", "11"])
def test_what_is_not_a_number_in_the_range_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"^a number of seconds from 0 to 10$"):
        number(0, 10, "seconds")(given)


def test_choice_that_is_close_to_one_of_the_words_is_named() -> None:
    with pytest.raises(ValueError, match=r"^one of debug, info; did you mean info\?$"):
        choice("debug", "info")("inf")
    with pytest.raises(ValueError, match=r"^one of debug, info$"):
        choice("debug", "info")(["info"])


def test_folder_that_is_close_to_one_that_exists_is_named(tmp_path: Any) -> None:
    (tmp_path / "models").mkdir()
    assert parse_folder(str(tmp_path / "models")) == tmp_path / "models"
    with pytest.raises(ValueError, match=rf"; did you mean {tmp_path}/models\?$"):
        parse_folder(str(tmp_path / "model"))
