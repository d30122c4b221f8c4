import re
from typing import Any

import yaml

from foldserve.service.settings import SETTINGS
from tests.deploy.support import DEPLOY, ROOT, version_of_foldserve


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / name).read_text())


def test_each_file_and_folder_that_compose_mounts_or_builds_exists() -> None:
    services = load("compose.yaml")["services"]
    assert (
        DEPLOY / services["foldserve"]["build"]["context"] / "Dockerfile"
    ).resolve() == ROOT / "Dockerfile"
    short_mounts = [
        mount.split(":")[0]
        for service in services.values()
        for mount in service["volumes"]
        if isinstance(mount, str) and mount.startswith(".")
    ]
    assert len(short_mounts) == 3
    for mount in short_mounts:
        assert (DEPLOY / mount).exists(), mount


def test_prometheus_scrapes_the_service_and_port_that_compose_starts() -> None:
    services = load("compose.yaml")["services"]
    scrape = load("prometheus/prometheus.yml")["scrape_configs"]
    ((target,),) = [config["targets"] for config in scrape[0]["static_configs"]]
    service, port = target.split(":")
    assert services[service]["ports"] == [f"127.0.0.1:{port}:{port}"]
    source = load("grafana/provisioning/datasources/prometheus.yaml")["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in services


def test_the_rules_select_the_job_under_which_prometheus_scrapes() -> None:
    job = load("prometheus/prometheus.yml")["scrape_configs"][0]["job_name"]
    assert f'up{{job="{job}"}}' in (DEPLOY / "prometheus/alerts.yml").read_text()
    assert f'job=\\"{job}\\"' in (DEPLOY / "grafana/dashboards/foldserve.json").read_text()


def test_the_server_runs_without_privileges_and_has_time_to_drain() -> None:
    server = load("compose.yaml")["services"]["foldserve"]
    assert server["read_only"] is True
    assert server["cap_drop"] == ["ALL"]
    assert server["security_opt"] == ["no-new-privileges:true"]
    # Compose's own default, 10 s, would cut off the longest request.
    longest_s = next(setting.default for setting in SETTINGS if setting.name == "request_timeout_ms") / 1000
    assert int(server["stop_grace_period"].removesuffix("s")) > longest_s


def test_every_setting_in_the_environment_is_one_that_foldserve_has() -> None:
    known = {setting.env for setting in SETTINGS}
    files = [ROOT / "Dockerfile", *DEPLOY.rglob("*.yaml")]
    used = {name for file in files for name in re.findall(r"\bFOLDSERVE_[A-Z_]+", file.read_text())}
    assert {"FOLDSERVE_DEVICE", "FOLDSERVE_HOST"} <= used
    assert used <= known


def test_images_carry_the_version_of_this_checkout_everywhere() -> None:
    version = version_of_foldserve()
    assert load("compose.yaml")["services"]["foldserve"]["image"] == f"foldserve:{version}"
    gpu = load("compose.gpu.yaml")["services"]["foldserve"]
    assert gpu["image"] == f"foldserve:{version}-cuda"
    assert gpu["build"]["args"] == {"EXTRAS": "cuda"}
    assert load("kubernetes/base/kustomization.yaml")["images"] == [{"name": "foldserve", "newTag": version}]
    assert load("kubernetes/gpu/kustomization.yaml")["images"] == [
        {"name": "foldserve", "newTag": f"{version}-cuda"}
    ]
    (container,) = load("kserve/serving-runtime.yaml")["spec"]["containers"]
    assert container["image"] == f"foldserve:{version}"
