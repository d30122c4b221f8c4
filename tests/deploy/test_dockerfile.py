import fnmatch
import json
import re

from tests.deploy.support import ROOT


def instructions() -> list[tuple[str, str]]:
    """(INSTRUCTION, argument) in the Dockerfile's order, continued lines joined, comments left out."""
    text = "\n".join(
        line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")
    )
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines if line.strip()]


def last_stage() -> dict[str, str]:
    steps = instructions()
    start = max(place for place, (name, _) in enumerate(steps) if name == "FROM")
    return dict(steps[start:])


def test_every_stage_starts_from_the_one_base_that_can_be_pinned_or_from_an_earlier_stage() -> None:
    assert instructions()[0] == ("ARG", "BASE_IMAGE=python:3.11-slim-bookworm")
    stages: list[str] = []
    for base, _, stage in [argument.partition(" AS ") for name, argument in instructions() if name == "FROM"]:
        assert base in ("${BASE_IMAGE}", *stages)
        stages.append(stage)
    assert len(stages) == 3


def test_the_server_is_process_one_and_gets_the_signals_itself() -> None:
    stage = last_stage()
    assert json.loads(stage["ENTRYPOINT"]) == ["foldserve"]
    assert json.loads(stage["CMD"]) == ["serve", "/models"]
    assert stage["STOPSIGNAL"] == "SIGTERM"


def test_the_server_is_not_root_and_says_so_by_number() -> None:
    user = last_stage()["USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


def test_the_health_check_runs_without_a_shell_and_asks_whether_models_are_ready() -> None:
    options, command = last_stage()["HEALTHCHECK"].split("CMD", 1)
    argv = json.loads(command)
    assert argv[:2] == ["python3", "-c"]
    compile(argv[2], "healthcheck", "exec")
    assert "/v2/health/ready" in argv[2]
    assert "--start-period" in options


def test_torch_is_not_in_the_image_unless_asked_for() -> None:
    assert ("ARG", 'EXTRAS=""') in instructions()


def test_every_install_uses_the_pins_or_takes_nothing_from_outside() -> None:
    runs = [argument for name, argument in instructions() if name == "RUN"]
    installs = [run for run in runs if "pip install" in run]
    assert len(installs) == 3
    assert all("-c constraints.txt" in run or "--no-index --no-deps" in run for run in installs)


def test_no_address_of_a_registry_or_mirror_is_written_down() -> None:
    for name in ("Dockerfile", "Makefile", ".ci/run", "constraints.txt", "pyproject.toml"):
        text = (ROOT / name).read_text()
        assert not re.search(r"https?://(?!127\.0\.0\.1)|index-url|find-links", text), name


def test_what_the_dockerfile_copies_exists_and_reaches_the_build() -> None:
    rules = (ROOT / ".dockerignore").read_text().split("\n")
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    assert "*" in rules
    copied = {
        source.removeprefix("./")
        for name, argument in instructions()
        if name == "COPY" and "--from=" not in argument
        for source in argument.split()[:-1]
    }
    assert copied == let_in
    for source in copied:
        assert (ROOT / source).exists()
        assert not any(fnmatch.fnmatch(source, rule) for rule in rules if rule and rule != "*")
