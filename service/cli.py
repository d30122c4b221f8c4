"""The command `foldserve`: finds the subcommand, runs it, and turns its errors into a text and an exit code.

serve, inspect and predict are here; others come from the entry-point group foldserve.commands (`export`
does), so that the server needs nothing of what they need. Exit codes: 0 done, 1 failed, 2 the command line or a
setting is not valid. Modules are imported by the command that needs them: `foldserve --help` must not wait for
onnxruntime.
"""

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from typing import Any, Final, Protocol

from foldserve.service.arguments import ArgumentParser, value_of
from foldserve.service.did_you_mean import did_you_mean
from foldserve.service.errors import ConfigError
from foldserve.service.host.processes import open_standard_streams
from foldserve.service.options import Option, number, whole_number
from foldserve.service.setting_sources import load_settings
from foldserve.service.settings import SETTINGS

GROUP: Final = "foldserve.commands"


class Command(Protocol):
    """A subcommand."""

    name: str
    help: str

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; return the exit code. Raises ConfigError for what exits with 2."""


class ServeCommand:
    """Serve a repository over HTTP."""

    name = "serve"
    help = "serve the models of a repository over HTTP"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.epilog = (
            "Each setting is taken from the command line, else from its environment variable, else from "
            "the file of --config, else it has its default. More: docs/configuration.md."
        )
        for setting in SETTINGS:
            text = f"{setting.help} [{setting.unit}; default {setting.default_text}; {setting.env}]"
            # argparse takes % for the start of a format.
            self._add(parser, setting, text.replace("%", "%%"))
        parser.add_argument(
            "--config", metavar="FILE", help="YAML file of `name: value` lines [FOLDSERVE_CONFIG]"
        )

    @staticmethod
    def _add(parser: argparse.ArgumentParser, setting: Option, text: str) -> None:
        if not setting.flag.startswith("--"):
            parser.add_argument(setting.name, metavar=setting.flag, nargs="?", help=text)
        elif isinstance(setting.default, bool):
            parser.add_argument(
                setting.flag, dest=setting.name, action=argparse.BooleanOptionalAction, help=text
            )
        else:
            metavar = setting.unit.upper()
            parser.add_argument(setting.flag, dest=setting.name, metavar=metavar, help=text)

    def run(self, args: argparse.Namespace) -> int:
        from foldserve.service.host.processes import StopSignals

        # First of all: what follows takes a second to import, and a signal in it is one to end by, not to die of. The
        # first process of a container would not even die: the kernel drops what it has no handler for.
        with StopSignals() as stop:
            given = {setting.name: getattr(args, setting.name) for setting in SETTINGS}
            settings = load_settings(given, os.environ, args.config)
            from foldserve.service.server.main import run_server

            return run_server(settings, stop)


class InspectCommand:
    """Show what a repository holds."""

    name = "inspect"
    help = "show signature, fold report, parity, hashes and sizes of exported models, and check the hashes"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "target",
            metavar="REPOSITORY[/MODEL[/VERSION]]",
            type=Path,
            help="a repository, a model or one version",
        )

    def run(self, args: argparse.Namespace) -> int:
        from foldserve.service.commands.inspect import inspect

        return inspect(args.target, sys.stdout)


class PredictCommand:
    """Send files to a server once."""

    name = "predict"
    help = "send .npy files or pictures to a running server and print the answers"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("url", metavar="URL", help="the server, as in http://localhost:8000")
        parser.add_argument("model", metavar="MODEL", help="the model's name")
        parser.add_argument(
            "files",
            metavar="FILE.npy|FILE.jpg|FILE.png",
            nargs="+",
            help="each file is one request; for a model with several inputs, NAME=FILE.npy for each of them; a "
            "picture is decoded as the export declared it (ImageInput)",
        )
        parser.add_argument("--version", metavar="V", help="the version [default: the server's]")
        parser.add_argument("--output", metavar="NAME", help="only this output [default: all]")
        parser.add_argument(
            "--top",
            metavar="N",
            type=value_of(whole_number(1)),
            help="print the labels of the N largest numbers of each row, where the model has labels [default: 5 for "
            "pictures, none for .npy]",
        )
        parser.add_argument(
            "--timeout-ms",
            metavar="MS",
            type=value_of(number(1, 86_400_000, "milliseconds")),
            default=30_000.0,
            help="how long to wait for each answer [milliseconds; default %(default)g]",
        )
        parser.add_argument(
            "--key-file",
            metavar="FILE",
            help="holds the key that the server asks for (docs/security.md); on the command line others could read it",
        )
        parser.add_argument(
            "--ca",
            metavar="FILE",
            help="PEM file of the certificates to trust of an https:// server [default: the system's]",
        )

    def run(self, args: argparse.Namespace) -> int:
        from foldserve.service.commands.predict import connect, predict_files

        with connect(args.url, args.timeout_ms, args.key_file, args.ca) as client:
            return predict_files(
                client, args.model, args.files, args.version, args.output, sys.stdout, args.top
            )


class _Missing:
    """Stands for a command whose extra is not installed: it is listed, and says what to install."""

    def __init__(self, name: str, missing: str) -> None:
        self.name = name
        self.help = f"(not installed: pip install 'foldserve[{name}]')"
        self._missing = missing

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
        parser.prefix_chars = "\0"  # whatever was typed, the answer is what to install

    def run(self, args: argparse.Namespace) -> int:
        raise ConfigError(
            f"`foldserve {self.name}` needs {self._missing}, which is not installed; "
            f"pip install 'foldserve[{self.name}]'"
        )


BUILT_IN: Final[tuple[Command, ...]] = (ServeCommand(), InspectCommand(), PredictCommand())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit code."""
    open_standard_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A label or a name may be what the terminal's encoding lacks; stderr is so already.
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands = {command.name: command for command in BUILT_IN}
    wanted = arguments[0] if arguments else ""
    for entry in entry_points(group=GROUP):
        # A plug-in is imported when it is called, or to list its help; not to serve.
        if entry.name not in commands and (wanted == entry.name or wanted not in commands):
            commands[entry.name] = _load(entry)
    parser = ArgumentParser(
        prog="foldserve",
        description="Fold, export and serve torch networks. `foldserve COMMAND --help` describes each command.",
    )
    parser.add_argument("--version", action="version", version=f"foldserve {version('foldserve')}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in commands.values():
        subparser = subparsers.add_parser(
            command.name, help=command.help, description=_sentence(command.help)
        )
        command.configure(subparser)
        subparser.set_defaults(command=command, parser=subparser)
    if wanted.startswith("-") and wanted not in ("-h", "--help", "--version"):
        parser.refuse([wanted])
    if not wanted.startswith("-") and wanted not in commands:
        problem = f"there is no command {wanted!r}" if wanted else "no command is given"
        parser.error(f"{problem}{did_you_mean(wanted, commands)}")
    args = parser.parse_args(arguments)
    return _run(args.command, args)


def _run(command: Command, args: argparse.Namespace) -> int:
    try:
        return command.run(args)
    except ConfigError as error:
        with contextlib.suppress(OSError):  # stderr is full or closed: the exit code says it too
            for problem in error.problems:
                print(f"foldserve {command.name}: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output (`| head`) is gone; nothing can be flushed to it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _load(entry: EntryPoint) -> Command:
    try:
        made: Any = entry.load()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == __name__.partition(".")[0]:
            raise  # a fault of ours, not an extra that is missing
        return _Missing(entry.name, error.name or "a module")
    command: Command = made()
    return command


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
