"""argparse as the command `foldserve` uses it: whole names alone, and every mistake says what was probably meant."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from foldserve.service.did_you_mean import did_you_mean
from foldserve.service.options import Parser


def value_of(parse: Parser) -> Callable[[str], Any]:
    """A parser of values (options.py) as argparse takes it for `type=`."""

    def read(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not valid; expected {error}") from None

    return read


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, without abbreviated options: `--workers` for one option today may be for two tomorrow, and who writes
    `--request-timeout 5` means seconds, not what --request-timeout-ms takes."""

    def __init__(self, **named: Any) -> None:
        super().__init__(**named, allow_abbrev=False)

    def parse_args(self, arguments: Sequence[str]) -> argparse.Namespace:  # type: ignore[override]  # of argparse's three
        """The arguments; ends the process with usage, what is wrong, and exit code 2 where they are not valid."""
        args, unknown = self.parse_known_args(arguments)
        if unknown:
            getattr(args, "parser", self).refuse(unknown)
        return args

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """End with what is wrong with unknown arguments: options first, the others may be their values."""
        options = [word.partition("=")[0] for word in unknown if word.startswith("-")]
        if not options:
            self.error(
                f"{' '.join(map(repr, unknown))}: more than `{self.prog}` takes; --help lists its arguments"
            )
        known = [word for word in self._option_string_actions if word.startswith("--")]
        self.error(
            "; ".join(
                f"there is no option {option}{did_you_mean(option, known, '--help lists them')}"
                for option in options
            )
        )
