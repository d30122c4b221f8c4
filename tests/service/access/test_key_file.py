"""The keys file: what is taken, what is refused, and that no text shows what may be a key."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from foldserve.service.access.key_file import MOST_KEYS, MOST_LIMITED, KeySource, read_keys
from foldserve.service.access.scopes import CONTROL, INFER, METRICS
from foldserve.service.errors import ConfigError

SECRET = "a-secret-of-more-than-16"
DIGEST = hashlib.sha256(SECRET.encode()).hexdigest()


def problems(given: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        KeySource(given).read()
    text = "\n".join(caught.value.problems)
    assert "secret" not in text
    assert DIGEST not in text
    return text


def test_key_and_its_digest_are_one_and_what_is_left_out_has_its_default() -> None:
    (plain,) = KeySource([{"name": "a", "key": SECRET}]).read()
    (told,) = KeySource([{"name": "a", "sha256": DIGEST.upper()}]).read()
    assert plain == told
    assert plain.digest == bytes.fromhex(DIGEST)
    assert (plain.scopes, plain.models, plain.limited) == (INFER, None, False)


def test_everything_that_can_be_said_of_a_key_is_read() -> None:
    limits = "rows_per_s: 0.5, queue_share: 1"
    text = f"[{{name: web, sha256: '{DIGEST}', scopes: [control, metrics], models: [m, n], {limits}}}]"
    (key,) = KeySource(text).read()
    assert (key.name, key.scopes, key.models) == ("web", CONTROL | METRICS, ("m", "n"))
    assert (key.rows_per_s, key.queue_share, key.limited) == (0.5, 1.0, True)


def test_keys_come_from_a_file_and_a_string_that_is_no_list_is_a_path(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(f"- {{name: a, key: {SECRET}}}\n- {{name: b, key: another-{SECRET}, scopes: metrics}}\n")
    source = KeySource(str(file))
    assert source.path == file
    assert [(key.name, key.scopes) for key in source.read()] == [("a", INFER), ("b", METRICS)]
    assert KeySource(f"- {{name: a, key: {SECRET}}}").path is None


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"name": "a"}, "either `sha256` or `key`"),
        ({"name": "a", "key": SECRET, "sha256": DIGEST}, "either `sha256` or `key`"),
        ({"name": "a", "key": "secret-short"}, "16 to 512"),
        ({"name": "a", "key": "secret with spaces in it"}, "visible ASCII"),
        ({"name": "a", "key": 1234567890123456}, "in quotes"),
        ({"name": "a", "sha256": SECRET}, "64 hexadecimal digits"),
        ({"name": "a b", "key": SECRET}, "a name of at most 64"),
        ({"key": SECRET}, "has no name"),
        ({"name": "a", "key": SECRET, "scopes": ["write"]}, "infer, control, metrics"),
        ({"name": "a", "key": SECRET, "scopes": []}, "infer, control, metrics"),
        ({"name": "a", "key": SECRET, "models": []}, "a list of names of models"),
        ({"name": "a", "key": SECRET, "models": "m"}, "a list of names of models"),
        ({"name": "a", "key": SECRET, "rows_per_s": -1}, "rows per second"),
        ({"name": "a", "key": SECRET, "rows_per_s": True}, "rows per second"),
        ({"name": "a", "key": SECRET, "queue_share": 1.5}, "as in 0.25"),
        (
            {"name": "a", "key": SECRET, "scope": ["infer"]},
            "unknown field, which may have been meant for 'scopes'",
        ),
        ({"name": "a", "key": SECRET, "the-secret": None}, "has an unknown field; expected only"),
        (SECRET, "is not a mapping"),
    ],
)
def test_bad_entry_is_told_with_its_place_and_without_what_may_be_a_key(entry: Any, expected: str) -> None:
    assert expected in problems([{"name": "good", "key": f"the-first-{SECRET}"}, entry])


def test_names_and_keys_that_come_twice_are_told() -> None:
    text = problems(
        [{"name": "a", "key": SECRET}, {"name": "b", "key": SECRET}, {"name": "a", "key": SECRET * 2}]
    )
    assert "two keys have one name: a" in text
    assert "two keys have one key: 'a' and 'b'" in text


@pytest.mark.parametrize("text", ["", "{}", "a: b", "[]", "just words", f"{{key: {SECRET}}}"])
def test_file_without_keys_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys.yaml").write_text(text)
    assert "no list of keys" in problems(str(tmp_path / "keys.yaml"))


@pytest.mark.parametrize(
    "text", [f"- key: {SECRET}: {SECRET}", f"- key: !{SECRET}", f'- key: "{SECRET}\n- [', f"*{SECRET}"]
)
def test_file_that_is_not_yaml_is_told_by_its_line_and_never_by_its_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys.yaml").write_text(text)
    assert "keys.yaml" in problems(str(tmp_path / "keys.yaml"))


def test_file_that_is_not_there_is_named_unless_its_name_may_be_a_key() -> None:
    assert "'/nowhere/keys.yaml' is not there" in problems("/nowhere/keys.yaml")
    assert "the file of --keys is not there" in problems(SECRET)


def test_numbers_of_keys_are_bounded() -> None:
    assert read_keys([None] * (MOST_KEYS + 1))[1] == [
        f"it has {MOST_KEYS + 1} keys; expected at most {MOST_KEYS}"
    ]
    limited = [{"name": f"k{at}", "key": f"{at:020}", "rows_per_s": 1} for at in range(MOST_LIMITED + 1)]
    assert f"at most {MOST_LIMITED}" in read_keys(limited)[1][0]
