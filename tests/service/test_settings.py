import dataclasses
import re
from pathlib import Path

import pytest

from foldserve.service.errors import ConfigError
from foldserve.service.setting_sources import load_settings
from foldserve.service.settings import SETTINGS, ServeSettings

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_a_folder_with_a_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "repository").mkdir()


def problems(command_line=(), environ=(), config_file=None):
    with pytest.raises(ConfigError) as caught:
        load_settings(dict(command_line), dict(environ), config_file)
    return caught.value.problems


def written(text):
    Path("settings.yaml").write_text(text)
    return "settings.yaml"


def test_without_anything_every_setting_has_its_default():
    settings = load_settings({}, {})
    defaults = {setting.name: setting.default for setting in SETTINGS}
    assert dataclasses.asdict(settings) == {**defaults, "repository": Path("repository")}


def test_the_table_and_the_dataclass_have_the_same_settings():
    assert [field.name for field in dataclasses.fields(ServeSettings)] == [
        setting.name for setting in SETTINGS
    ]


def test_every_default_is_a_value_that_its_own_parser_takes():
    for setting in SETTINGS:
        if setting.default is not None:
            assert setting.parse(setting.default) in (setting.default, Path(str(setting.default)))


def test_the_command_line_beats_the_environment_beats_the_file_beats_the_default():
    file = written("port: 1\nhost: a\nlog_level: error\n")
    environ = {"FOLDSERVE_PORT": "2", "FOLDSERVE_HOST": "b"}
    settings = load_settings({"port": "3", "host": None}, environ, file)
    assert (settings.port, settings.host, settings.log_level, settings.api_servers) == (3, "b", "error", 1)


def test_the_environment_can_name_the_file():
    assert load_settings({}, {"FOLDSERVE_CONFIG": written("port: 81")}).port == 81


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("port", "8080", 8080),
        ("port", 8080, 8080),
        ("port", "0", 0),
        ("port", " 8080 ", 8080),
        ("device", "CUDA:0,1", "cuda:0,1"),
        ("device", "cuda", "cuda"),
        ("device", "cuda:3", "cuda:3"),
        ("max_body_bytes", "64MiB", 2**26),
        ("max_body_bytes", "1 gib", 2**30),
        ("max_body_bytes", 5, 5),
        ("request_timeout_ms", "0", 0),
        ("drain_grace_s", "2.5", 2.5),
        ("drain_grace_s", 3, 3.0),
        ("access_log", "on", True),
        ("access_log", True, True),
        ("access_log", "0", False),
        ("log_level", "DEBUG", "debug"),
        ("default_model", "mlp", "mlp"),
        ("host", "::1", "::1"),
        ("host", "[::1]", "[::1]"),
        ("host", "localhost, unix:/run/s.sock", "localhost, unix:/run/s.sock"),
    ],
)
def test_a_good_value_is_taken(name, given, value):
    assert getattr(load_settings({name: given}, {}), name) == value


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("port", "x", "a whole number from 0 to 65535"),
        ("host", "localhost:8000", "names or IP addresses, without http://"),
        ("host", "[::1]:8000", "names or IP addresses, without http://"),
        ("host", "http://localhost", "names or IP addresses, without http://"),
        ("host", "127.0.0.1,,::1", "names or IP addresses, without http://"),
        ("host", "unix:", "names or IP addresses, without http://"),
        ("port", "-1", "a whole number"),
        ("port", "65536", "a whole number"),
        ("port", "80.0", "a whole number"),
        ("port", "٨٠", "a whole number"),
        ("port", True, "a whole number"),
        ("port", "", "a whole number"),
        ("api_servers", "-1", "a whole number from 1 to 256"),
        ("workers_per_device", "1e3", "a whole number"),
        ("device", "gpu", "auto, cpu, cuda"),
        ("device", "cuda:", "auto, cpu, cuda"),
        ("device", "cuda:0,", "auto, cpu, cuda"),
        ("max_body_bytes", "64MB", "a number of bytes"),
        ("max_body_bytes", "0", "a number of bytes"),
        ("max_body_bytes", "-1", "a number of bytes"),
        ("max_body_bytes", "9999999GiB", "a number of bytes"),
        ("request_timeout_ms", "1.5", "a whole number from 0"),
        ("drain_grace_s", "-1", "a number of seconds"),
        ("drain_grace_s", "inf", "a number of seconds"),
        ("drain_grace_s", "3601", "a number of seconds"),
        ("access_log", "maybe", "true or false"),
        ("log_level", "loud", "one of debug, info"),
        ("host", "", "a name"),
        ("default_model", 5, "a name"),
        ("repository", "/nowhere", "a folder that holds <model>/<version>/ folders"),
    ],
)
def test_a_bad_value_is_refused_with_its_source_and_what_was_expected(name, given, expected):
    (setting,) = (setting for setting in SETTINGS if setting.name == name)
    (problem,) = problems({name: given})
    assert problem.startswith(f"{setting.flag} is {given!r}; expected {expected}")
    if isinstance(given, str):
        (problem,) = problems(environ={setting.env: given})
        assert problem.startswith(f"{setting.env} is {given!r}; expected {expected}")


def test_every_problem_is_told_at_once():
    file = written("prot: 1\nhost: 5\n")
    found = problems(
        {"port": "x"},
        {"FOLDSERVE_DEVICE": "gpu", "FOLDSERVE_API_SERVER": "2", "FOLDSERVE_LOG_LEVEL": "loud"},
        file,
    )
    assert len(found) == 6
    text = "\n".join(found)
    for part in (
        "'prot' in settings.yaml",
        "host in settings.yaml is 5",
        "--port",
        "FOLDSERVE_DEVICE",
        "FOLDSERVE_LOG_LEVEL",
    ):
        assert part in text
    assert "FOLDSERVE_API_SERVER is not a setting; did you mean FOLDSERVE_API_SERVERS?" in text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- port", "is a list; expected `name: value` lines"),
        ("8000", "is a int"),
        ("port: [", "is not YAML"),
        ("port: 80\n  host: x", "is not YAML"),
        ("\x00", "is not YAML"),
        ("!!python/object/apply:os.getpid []", "is not YAML"),
        ("nothing: 1", "expected one of repository, host"),
        ("5: 1", "5 in settings.yaml is not a setting"),
    ],
)
def test_a_bad_file_is_refused(text, says):
    (problem,) = problems(config_file=written(text))
    assert says in problem


def test_a_file_that_is_not_there_is_refused():
    (problem,) = problems(config_file="gone.yaml")
    assert "'gone.yaml' cannot be read (No such file or directory)" in problem


def test_an_empty_file_sets_nothing():
    assert load_settings({}, {}, written("# nothing\n")).port == 8000


def test_what_kubernetes_puts_into_the_environment_of_a_service_named_foldserve_is_passed_over():
    environ = {
        "FOLDSERVE_PORT": "tcp://10.0.0.1:8000",
        "FOLDSERVE_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "FOLDSERVE_PORT_8000_TCP_ADDR": "10.0.0.1",
        "FOLDSERVE_PORT_8000_TCP_PORT": "8000",
        "FOLDSERVE_SERVICE_HOST": "10.0.0.1",
        "FOLDSERVE_SERVICE_PORT": "8000",
        "FOLDSERVE_SERVICE_PORT_HTTP": "8000",
        "FOLDSERVE_CANARY_SERVICE_HOST": "10.0.0.2",
    }
    assert load_settings({}, environ).port == 8000


def test_another_programs_variables_are_left_alone():
    assert load_settings({}, {"FOLDSERVE_CHART_REVISION_OF_TODAY": "7", "PORT": "x"}).port == 8000


def test_no_bound_on_time_is_none():
    assert load_settings({"request_timeout_ms": 0}, {}).request_timeout_s is None
    assert load_settings({"request_timeout_ms": 250}, {}).request_timeout_s == 0.25


def test_the_document_lists_every_setting_with_its_flag_variable_unit_and_default():
    text = (ROOT / "docs" / "configuration.md").read_text()
    rows = {match[1]: match[0] for match in re.finditer(r"^\| `(\w+)` .*$", text, re.MULTILINE)}
    assert set(rows) == {setting.name for setting in SETTINGS}
    for setting in SETTINGS:
        for part in (f"`{setting.flag}`", f"`{setting.env}`", setting.unit, f"`{setting.default_text}`"):
            assert part in rows[setting.name], (setting.name, part)


def test_json_bodies_may_not_be_allowed_more_than_all_bodies():
    (problem,) = problems({"max_json_bytes": "2MiB", "max_body_bytes": "1MiB"})
    assert "--max-json-bytes is 2097152, more than the 1048576 of --max-body-bytes" in problem
    file = written("max_json_bytes: 65MiB")
    (problem,) = problems({}, {}, file)
    assert "max_json_bytes in settings.yaml is 68157440" in problem
    assert "max_body_bytes (default)" in problem


def test_the_limit_of_json_follows_a_lower_limit_of_all_bodies():
    assert load_settings({"max_body_bytes": "1MiB"}, {}).max_json_bytes == 2**20
    assert load_settings({"max_body_bytes": "1GiB"}, {}).max_json_bytes == 16 * 2**20
    assert load_settings({"max_json_bytes": "64MiB"}, {}).max_json_bytes == 64 * 2**20


MIB = 2**20


def limits(**given):
    settings = load_settings(given, {})
    return settings.max_body_bytes // MIB, settings.arena_bytes // MIB, settings.receive_bytes // MIB


@pytest.mark.parametrize(
    ("given", "settled"),
    [
        ({}, (64, 512, 256)),
        ({"max_body_bytes": "1GiB"}, (1024, 8192, 4096)),
        ({"max_body_bytes": "1MiB"}, (1, 512, 256)),
        ({"arena_bytes": "1MiB"}, (1, 1, 256)),
        ({"receive_bytes": "2MiB"}, (2, 512, 2)),
        ({"receive_bytes": "2MiB", "arena_bytes": "1MiB"}, (1, 1, 2)),
        ({"max_body_bytes": "1GiB", "arena_bytes": "1GiB"}, (1024, 1024, 4096)),
        ({"max_body_bytes": "300MiB", "arena_bytes": "1GiB", "receive_bytes": "300MiB"}, (300, 1024, 300)),
    ],
)
def test_a_limit_that_is_not_given_follows_those_that_are(given, settled):
    assert limits(**given) == settled


def test_every_given_limit_that_a_given_body_does_not_fit_is_named_with_where_it_comes_from():
    file = written("receive_bytes: 16MiB")
    told = problems({"max_body_bytes": "64MiB"}, {"FOLDSERVE_ARENA_BYTES": "1MiB"}, file)
    assert len(told) == 2
    for problem in told:
        assert "less than the 67108864 of --max-body-bytes" in problem
        assert "raise the one or lower the other" in problem
    assert told[0].startswith("FOLDSERVE_ARENA_BYTES is 1048576,")
    assert told[1].startswith("receive_bytes in settings.yaml is 16777216,")


def test_the_limit_of_json_follows_whatever_lowers_that_of_all_bodies():
    assert load_settings({"arena_bytes": "1MiB"}, {}).max_json_bytes == 2**20
    (problem,) = problems({"arena_bytes": "1MiB", "max_json_bytes": "2MiB"})
    assert "--max-json-bytes is 2097152, more than the 1048576 of max_body_bytes (default)" in problem
