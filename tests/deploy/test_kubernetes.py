import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from foldserve.service.settings import SETTINGS
from tests.deploy.support import DEPLOY

QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / name).read_text())


def deployment() -> dict[str, Any]:
    return load("kubernetes/base/deployment.yaml")


def containers() -> list[dict[str, Any]]:
    return [
        *deployment()["spec"]["template"]["spec"]["containers"],
        *load("kubernetes/gpu/deployment.yaml")["spec"]["template"]["spec"]["containers"],
        *load("kserve/serving-runtime.yaml")["spec"]["containers"],
    ]


def test_service_and_disruption_budget_select_the_pods_of_the_deployment() -> None:
    labels = deployment()["spec"]["template"]["metadata"]["labels"]
    assert deployment()["spec"]["selector"]["matchLabels"] == labels
    assert load("kubernetes/base/service.yaml")["spec"]["selector"] == labels
    assert load("kubernetes/base/disruption-budget.yaml")["spec"]["selector"]["matchLabels"] == labels


def test_probes_service_and_scrape_annotation_mean_the_port_of_the_image() -> None:
    (container,) = deployment()["spec"]["template"]["spec"]["containers"]
    (port,) = container["ports"]
    assert port["containerPort"] == 8000
    assert load("kubernetes/base/service.yaml")["spec"]["ports"][0]["targetPort"] == port["name"]
    assert deployment()["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"] == "8000"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] == port["name"]
    (kserve,) = load("kserve/serving-runtime.yaml")["spec"]["containers"]
    for probe in ("readinessProbe", "livenessProbe"):
        assert kserve[probe]["httpGet"]["port"] == 8000


def test_traffic_follows_readiness_and_only_a_dead_server_is_restarted() -> None:
    (container,) = deployment()["spec"]["template"]["spec"]["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert container["startupProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"


def test_no_probe_takes_one_late_answer_for_a_failure_and_a_draining_pod_is_out_within_its_grace() -> None:
    (container,) = deployment()["spec"]["template"]["spec"]["containers"]
    (kserve,) = load("kserve/serving-runtime.yaml")["spec"]["containers"]
    probes = [found[kind] for found in (container, kserve) for kind in ("readinessProbe", "livenessProbe")]
    for probe in [*probes, container["startupProbe"]]:
        assert probe["timeoutSeconds"] >= 5  # the default is 1
        assert probe["failureThreshold"] >= 3
    grace_s = next(item["value"] for item in container["env"] if item["name"] == "FOLDSERVE_DRAIN_GRACE_S")
    ready = container["readinessProbe"]
    assert ready["periodSeconds"] * ready["failureThreshold"] < float(grace_s)


def test_a_pod_has_time_for_its_grace_and_the_longest_request() -> None:
    spec = deployment()["spec"]["template"]["spec"]
    environment = {item["name"]: item["value"] for item in spec["containers"][0]["env"]}
    longest_s = next(setting.default for setting in SETTINGS if setting.name == "request_timeout_ms") / 1000
    assert spec["terminationGracePeriodSeconds"] > float(environment["FOLDSERVE_DRAIN_GRACE_S"]) + longest_s


def test_every_mounted_volume_is_declared_and_the_models_are_read_only() -> None:
    spec = deployment()["spec"]["template"]["spec"]
    mounts = {mount["name"]: mount for mount in spec["containers"][0]["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in spec["volumes"]}
    assert mounts["models"]["mountPath"] in spec["containers"][0]["args"]
    assert mounts["models"]["readOnly"] is True


def test_quantities_are_ones_that_kubernetes_can_read() -> None:
    found = [
        str(quantity)
        for container in containers()
        for kind in ("requests", "limits")
        for quantity in container["resources"].get(kind, {}).values()
    ]
    assert len(found) >= 9
    assert [quantity for quantity in found if not QUANTITY.fullmatch(quantity)] == []


@pytest.mark.parametrize("variant", ["base", "gpu"])
def test_kustomize_builds(variant: str) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(
        [kubectl, "kustomize", str(DEPLOY / "kubernetes" / variant)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kinds = {document["kind"]: document for document in yaml.safe_load_all(done.stdout)}
    assert set(kinds) == {"Deployment", "Service", "PodDisruptionBudget"}
    (container,) = kinds["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    device = {"base": "cpu", "gpu": "cuda"}[variant]
    assert {"name": "FOLDSERVE_DEVICE", "value": device} in container["env"]
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (variant == "gpu")
