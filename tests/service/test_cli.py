import importlib.metadata
import subprocess
import sys
from typing import Any

import pytest

from foldserve.service import cli
from foldserve.service.cli import main
from foldserve.service.errors import ConfigError
from foldserve.service.settings import SETTINGS


def entry(name, value):
    return importlib.metadata.EntryPoint(name, value, cli.GROUP)


class Plugin:
    """Stands for a command of another package."""

    name = "fold"
    help = "fold things"

    def configure(self, parser):
        parser.add_argument("what")

    def run(self, args):
        if args.what == "bad":
            raise ConfigError("first problem", "second problem")
        if args.what == "stop":
            raise KeyboardInterrupt
        return 7


@pytest.fixture
def plugins(monkeypatch):
    entries: list[Any] = []
    monkeypatch.setattr(cli, "entry_points", lambda group: entries)
    return entries


def exit_code(*arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code


def test_help_lists_the_commands(capsys, plugins):
    plugins.append(entry("fold", f"{__name__}:Plugin"))
    assert exit_code("--help") == 0
    shown = capsys.readouterr().out
    for name in ("serve", "inspect", "predict", "fold"):
        assert name in shown


def test_version_is_the_distributions(capsys, plugins):
    assert exit_code("--version") == 0
    assert capsys.readouterr().out == f"foldserve {importlib.metadata.version('foldserve')}\n"


@pytest.mark.parametrize("arguments", [(), ("bake",), ("serve", "--nonsense"), ("predict",), ("inspect",)])
def test_a_command_line_that_is_none_exits_with_2(arguments, capsys, plugins):
    assert exit_code(*arguments) == 2
    assert "usage: foldserve" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("serve", "--prot", "8000", "repository"), "no option --prot; did you mean --port?"),
        (("serve", "--workers", "2"), "no option --workers; did you mean --workers-per-device?"),
        (("serve", "--request-timeout", "5"), "did you mean --request-timeout-ms?"),
        (("serve", "--request-timeout=5"), "no option --request-timeout; did you mean --request-timeout-ms?"),
        (("serve", "--drain", "5", "--run", "5"), "did you mean --drain-grace?; there is no option --run; "),
        (("serve", "--nonsense"), "no option --nonsense; --help lists them"),
        (("serve", "one", "two"), "'two': more than `foldserve serve` takes"),
        (("predict", "--timeout", "3", "url", "model", "file"), "did you mean --timeout-ms?"),
        (("fold", "--deep", "it"), "no option --deep"),
        (
            ("predict", "--top", "0", "url", "model", "file"),
            "--top: '0' is not valid; expected a whole number from 1",
        ),
        (
            ("predict", "--timeout-ms", "x", "url", "model", "file"),
            "expected a number of milliseconds from 1 to",
        ),
    ],
)
def test_option_that_is_none_is_named_with_the_one_that_was_meant_and_no_part_of_a_name_is_taken_for_it(
    arguments, says, capsys, plugins
):
    plugins.append(entry("fold", f"{__name__}:Plugin"))
    assert exit_code(*arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"usage: foldserve {arguments[0]} ")
    assert says in told.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "no command is given; expected one of serve, inspect, predict, fold"),
        (("srve", "repository"), "there is no command 'srve'; did you mean serve?"),
        (("help",), "there is no command 'help'; expected one of serve, inspect, predict, fold"),
        (("--verson",), "there is no option --verson; did you mean --version?"),
        (("--port", "81", "serve"), "there is no option --port; --help lists them"),
    ],
)
def test_command_that_there_is_not_is_named_with_the_one_that_was_meant(arguments, says, capsys, plugins):
    plugins.append(entry("fold", f"{__name__}:Plugin"))
    assert exit_code(*arguments) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"foldserve: error: {says}"


@pytest.mark.parametrize("command", [(), ("serve",), ("inspect",), ("predict",), ("export",)])
def test_help_fits_80_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert exit_code(*command, "--help") == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_help_of_serve_names_every_setting_with_unit_default_and_variable(capsys, plugins):
    assert exit_code("serve", "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    for setting in SETTINGS:
        assert setting.flag in shown
        assert f"[{setting.unit}; default {setting.default_text}; {setting.env}]" in shown


def test_serve_hands_checked_settings_to_the_server(tmp_path, monkeypatch, plugins):
    import foldserve.service.server.main

    got = []
    monkeypatch.setattr(
        foldserve.service.server.main, "run_server", lambda settings, stop: got.append(settings) or 0
    )
    monkeypatch.setenv("FOLDSERVE_HOST", "0.0.0.0")
    assert main(["serve", str(tmp_path), "--port", "81", "--access-log", "--drain-grace", "2"]) == 0
    (settings,) = got
    assert (settings.repository, settings.port, settings.host) == (tmp_path, 81, "0.0.0.0")
    assert settings.access_log is True
    assert settings.drain_grace_s == 2.0
    assert main(["serve", str(tmp_path), "--no-access-log"]) == 0
    assert got[1].access_log is False


def test_every_bad_setting_is_told_and_the_exit_code_is_2(capsys, plugins):
    assert main(["serve", "/nowhere", "--port", "x", "--device", "tpu"]) == 2
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 3
    assert all(line.startswith("foldserve serve: ") for line in shown)


def test_a_plugin_is_run(plugins, capsys):
    plugins.append(entry("fold", f"{__name__}:Plugin"))
    assert main(["fold", "it"]) == 7
    assert main(["fold", "bad"]) == 2
    assert capsys.readouterr().err == "foldserve fold: first problem\nfoldserve fold: second problem\n"
    assert main(["fold", "stop"]) == 130


def test_a_plugin_is_not_imported_for_another_command(plugins, capsys):
    plugins.append(entry("fold", "no_such_module_at_all:Plugin"))
    assert main(["serve", "/nowhere"]) == 2


@pytest.mark.parametrize("arguments", [("fold",), ("fold", "x", "--deep", "-v"), ("fold", "--", "x")])
def test_a_plugin_whose_extra_is_missing_says_what_to_install(arguments, plugins, capsys):
    plugins.append(entry("fold", "no_such_module_at_all:Plugin"))
    assert main(list(arguments)) == 2
    assert capsys.readouterr().err == (
        "foldserve fold: `foldserve fold` needs no_such_module_at_all, which is not installed; "
        "pip install 'foldserve[fold]'\n"
    )


def test_a_plugin_whose_extra_is_missing_is_still_listed(plugins, capsys):
    plugins.append(entry("fold", "no_such_module_at_all:Plugin"))
    assert exit_code("--help") == 0
    assert "not installed: pip install 'foldserve[fold]'" in capsys.readouterr().out


def test_a_module_of_ours_that_is_missing_is_no_missing_extra(plugins):
    plugins.append(entry("fold", "foldserve.service.no_such_module:Plugin"))
    with pytest.raises(ModuleNotFoundError):
        main(["fold"])


def test_export_joins_by_its_entry_point():
    assert "export" in {entry.name for entry in importlib.metadata.entry_points(group=cli.GROUP)}


def test_serving_imports_neither_models_nor_torch():
    code = (
        "import sys, foldserve.service.cli, foldserve.service.server.main, foldserve.service.frontend.asgi\n"
        "import foldserve.service.commands.predict, foldserve.service.commands.inspect\n"
        "print([name for name in sys.modules if name in ('torch', 'foldserve.models', 'onnx')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"
