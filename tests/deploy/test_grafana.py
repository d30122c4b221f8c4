import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.support import DEPLOY, unknown_in

GRAFANA = DEPLOY / "grafana"
DASHBOARD = json.loads((GRAFANA / "dashboards" / "foldserve.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions(panel: dict[str, Any]) -> list[str]:
    return [target["expr"] for target in panel["targets"]]


def without_variables(expression: str) -> str:
    return expression.replace("$__rate_interval", "1m").replace("$model", ".*")


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_asks_only_for_series_that_foldserve_exposes(panel: dict[str, Any]) -> None:
    assert [fault for expression in expressions(panel) for fault in unknown_in(expression)] == []


def test_a_misspelt_metric_or_label_would_be_noticed() -> None:
    assert unknown_in('rate(foldserve_request_total{code="200"}[1m])') == ["foldserve_request_total"]
    assert unknown_in('foldserve_queue_rows{modle="m"}') == ["foldserve_queue_rows{modle}"]


def test_every_query_is_valid_promql_and_every_recorded_name_exists(promtool: str, tmp_path: Path) -> None:
    recorded = {
        rule["record"]
        for group in yaml.safe_load((DEPLOY / "prometheus" / "recording.yml").read_text())["groups"]
        for rule in group["rules"]
    }
    queries = [without_variables(expression) for panel in PANELS for expression in expressions(panel)]
    for query in queries:
        if query.startswith("model:"):
            assert query.partition("{")[0] in recorded
    rules = [{"record": f"panel:query:{number}", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(
        [promtool, "check", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_reads_from_the_data_source_that_is_provisioned() -> None:
    provisioned = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())
    (source,) = provisioned["datasources"]
    used = {panel["datasource"]["uid"] for panel in PANELS}
    used |= {target["datasource"]["uid"] for panel in PANELS for target in panel["targets"]}
    assert used == {source["uid"]}


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    cells = [
        (column, line)
        for panel in DASHBOARD["panels"]
        for place in [panel["gridPos"]]
        for column in range(place["x"], place["x"] + place["w"])
        for line in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(column for column, _ in cells) < 24
