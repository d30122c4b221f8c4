import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from foldserve.service.metrics.catalog import REJECTIONS
from tests.deploy.support import DEPLOY, unknown_in

PROMETHEUS = DEPLOY / "prometheus"
RULE_FILES = ("recording.yml", "alerts.yml")


def rules() -> list[dict[str, str]]:
    return [
        rule
        for name in RULE_FILES
        for group in yaml.safe_load((PROMETHEUS / name).read_text())["groups"]
        for rule in group["rules"]
    ]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=PROMETHEUS, capture_output=True, text=True, timeout=30, check=False)


def test_prometheus_accepts_the_configuration_and_its_rules(promtool: str) -> None:
    done = run(promtool, "check", "config", "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_fires_when_it_should_and_none_for_a_healthy_server(promtool: str) -> None:
    done = run(promtool, "test", "rules", "alerts_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_broken_rule_is_noticed_by_the_rule_tests(promtool: str, tmp_path: Path) -> None:
    copy = tmp_path / "prometheus"
    shutil.copytree(PROMETHEUS, copy)
    alerts = copy / "alerts.yml"
    alerts.write_text(alerts.read_text().replace("foldserve_model_ready == 0", "foldserve_model_ready == 1"))
    done = subprocess.run(
        [promtool, "test", "rules", "alerts_test.yml"], cwd=copy, capture_output=True, timeout=30, check=False
    )
    assert done.returncode != 0


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("record") or rule.get("alert"))
def test_a_rule_asks_only_for_series_that_foldserve_exposes(rule: dict[str, str]) -> None:
    assert unknown_in(rule["expr"]) == []


def test_every_alert_is_tested_and_says_what_happened() -> None:
    tested = (PROMETHEUS / "alerts_test.yml").read_text()
    for rule in rules():
        if "alert" in rule:
            assert f"alertname: {rule['alert']}\n" in tested, (
                f"{rule['alert']} never fires in alerts_test.yml"
            )
            assert rule["annotations"]["summary"]
            assert rule["labels"]["severity"] in ("warning", "critical")


def test_the_reason_that_an_alert_selects_is_one_that_the_server_counts() -> None:
    assert "queue_full" in REJECTIONS
    assert any('reason="queue_full"' in rule["expr"] for rule in rules())
