"""Where the settings of `foldserve serve` come from; the only reader of the environment.

A value is taken from the command line, else FOLDSERVE_<NAME>, else the YAML file, else the default. All bad values are
reported together: a server that runs on a guessed setting is worse than one that does not start.
"""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from foldserve.service.did_you_mean import did_you_mean
from foldserve.service.documents import BadDocument, parse_yaml
from foldserve.service.errors import ConfigError
from foldserve.service.options import ENV_PREFIX, parse_all
from foldserve.service.settings import SETTINGS, ServeSettings

# Kubernetes gives every pod FOLDSERVE_PORT=tcp://10.0.0.1:8000 and the like when a Service is named
# foldserve.
_KUBERNETES_LINK: Final = re.compile(r"(tcp|udp|sctp)://")
_KUBERNETES_NAMES: Final = re.compile(r"FOLDSERVE_(.*_)?(SERVICE_(HOST|PORT)|PORT_\d+).*")
# How alike an unknown FOLDSERVE_ name must be to a setting's to be taken for a misspelling of it.
_TYPO_RATIO: Final = 0.8
_BY_NAME: Final = {setting.name: setting for setting in SETTINGS}
_CONFIG_ENV: Final = ENV_PREFIX + "CONFIG"


def load_settings(
    command_line: Mapping[str, Any], environ: Mapping[str, str], config_file: str | None = None
) -> ServeSettings:
    """Take each setting from its first source, check all of them.

    Args:
        command_line: values by setting name; None = not given.
        environ: the process's environment.
        config_file: the YAML file of --config; FOLDSERVE_CONFIG names it otherwise.
    Raises: ConfigError with every problem found.
    """
    problems: list[str] = []
    path = config_file or environ.get(_CONFIG_ENV)
    in_file = _read_file(path, problems) if path else {}
    problems.extend(_misspelled(environ))
    given: dict[str, tuple[str, Any]] = {}
    for setting in SETTINGS:
        sources = (
            (setting.flag, command_line.get(setting.name)),
            (setting.env, _without_links(environ.get(setting.env))),
            (f"{setting.name} in {path}", in_file.get(setting.name)),
        )
        found = next((one for one in sources if one[1] is not None), None)
        if found:
            given[setting.name] = found
    defaults = {
        setting.name: (f"{setting.name} (default)", setting.default)
        for setting in SETTINGS
        if setting.default is not None
    }
    values, wrong = parse_all(SETTINGS, defaults | given)
    problems.extend(wrong)
    if not problems:
        problems.extend(_settle_limits(values, {name: place for name, (place, _) in given.items()}))
    if problems:
        raise ConfigError(*problems)
    return ServeSettings(**values)


def _without_links(value: str | None) -> str | None:
    return None if value is not None and _KUBERNETES_LINK.match(value) else value


def _settle_limits(values: dict[str, Any], given: Mapping[str, str]) -> list[str]:
    """Make the limits on bodies consistent: those that were not given follow those that were.

    given: for each value that is not a default, where it comes from.
    Returns: the given limits that contradict each other.
    """
    largest = "max_body_bytes"
    for name in ("arena_bytes", "receive_bytes"):
        if name in given and largest not in given:
            values[largest] = min(values[largest], values[name])
        elif name not in given:
            times = _BY_NAME[name].default // _BY_NAME[largest].default
            values[name] = max(values[name], times * values[largest])
    limit = values[largest]
    bound = f"the {limit} of {given.get(largest, 'max_body_bytes (default)')}, the limit of every body"
    problems = []
    if values["max_json_bytes"] > limit and "max_json_bytes" in given:
        problems.append(
            f"{given['max_json_bytes']} is {values['max_json_bytes']}, more than {bound}; lower the one or raise "
            "the other"
        )
    values["max_json_bytes"] = min(limit, values["max_json_bytes"])
    for name in ("arena_bytes", "receive_bytes"):
        if values[name] < limit:
            problems.append(
                f"{given[name]} is {values[name]}, less than {bound}, which must fit into it; raise the one or "
                "lower the other"
            )
    return problems


def _read_file(path: str, problems: list[str]) -> Mapping[str, Any]:
    try:
        content = parse_yaml(Path(path).read_bytes())
    except OSError as error:
        problems.append(
            f"the settings file {path!r} cannot be read ({error.strerror}); give the path of a YAML file"
        )
        return {}
    except BadDocument as error:
        problems.append(f"the settings file {path!r} {error}")
        return {}
    if content is None:
        return {}
    if not isinstance(content, dict):
        problems.append(
            f"the settings file {path!r} is a {type(content).__name__}; expected `name: value` lines"
        )
        return {}
    for name in content:
        if name not in _BY_NAME:
            problems.append(f"{name!r} in {path} is not a setting{did_you_mean(str(name), _BY_NAME)}")
    return content


def _misspelled(environ: Mapping[str, str]) -> list[str]:
    known = {setting.env for setting in SETTINGS} | {_CONFIG_ENV}
    found = []
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX) or name in known or _KUBERNETES_NAMES.fullmatch(name):
            continue
        # Others may own variables with our prefix (a chart, a test run): only what looks like ours is
        # refused.
        if difflib.get_close_matches(name, known, n=1, cutoff=_TYPO_RATIO):
            found.append(f"{name} is not a setting{did_you_mean(name, known)}")
    return found
