"""The Kubernetes manifests: rendered, valid by Kubernetes' own schemas, and locked down."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from invited import NAMES, addresses
from serving import ROOT

from privserve.authority import WARN_DAYS
from privserve.certificates import write_cluster
from privserve.config import Timeouts, identity, read_config
from privserve.party import state_key
from privserve.party.process import SHUTDOWN_SECONDS

DEPLOY = ROOT / "deploy" / "kustomize"
VERSIONS = ("1.32", "1.37")
"""Of Kubernetes: the first in which all that is used here is stable, and the newest known."""
MARGIN = 10
"""Seconds until the other parties are told, and threads have ended."""
SELECTOR = {"app.kubernetes.io/name": "privserve", "app.kubernetes.io/component": "party"}
KUBECTL = shutil.which("kubectl")
needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed here")

Manifest = dict[str, Any]


def render(directory: Path) -> list[Manifest]:
    """What `kubectl apply --kustomize` would send."""
    command = [str(KUBECTL), "kustomize", str(directory)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return list(yaml.safe_load_all(ran.stdout))


def plain(name: str) -> list[Manifest]:
    """The manifests of party `name` before anything is rendered."""
    files = [DEPLOY / name / "namespace.yaml", *sorted((DEPLOY / "base").glob("*.yaml"))]
    found = [one for file in files for one in yaml.safe_load_all(file.read_text())]
    return [one for one in found if one["kind"] != "Kustomization"]


@pytest.fixture(params=NAMES)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    """A party's manifests: rendered where kubectl is there, as they are written where it is not."""
    return render(DEPLOY / request.param) if KUBECTL else plain(request.param)


def one(manifests: list[Manifest], kind: str, name: str = "party") -> Manifest:
    (found,) = (m for m in manifests if m["kind"] == kind and m["metadata"]["name"] == name)
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid(manifests: list[Manifest], version: str) -> None:
    for manifest in manifests:
        kubernetes_validate.validate(manifest, version, strict=True)
    kinds = sorted(manifest["kind"] for manifest in manifests)
    assert kinds == [
        *("Namespace", "NetworkPolicy", "PodDisruptionBudget"),
        *("Service", "Service", "StatefulSet"),
    ]


def test_a_misspelt_field_would_be_found(manifests: list[Manifest]) -> None:
    party = one(manifests, "StatefulSet")
    party["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(party, VERSIONS[0], strict=True)


def test_a_pod_may_do_nothing_but_serve(manifests: list[Manifest]) -> None:
    pod = one(manifests, "StatefulSet")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    held = pod["securityContext"]
    assert held["runAsNonRoot"] is True
    assert held["seccompProfile"] == {"type": "RuntimeDefault"}
    # As the image has it; fsGroup lets that user read the key.
    assert held["runAsUser"] == held["runAsGroup"] == held["fsGroup"] == 10001
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert container["resources"]["limits"]["memory"]
    labels = one(manifests, "Namespace", manifests[0]["metadata"]["name"])["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_probes_and_services_reach_the_one_port(manifests: list[Manifest]) -> None:
    party = one(manifests, "StatefulSet")["spec"]
    (container,) = party["template"]["spec"]["containers"]
    assert container["ports"][0] == {"name": "party", "containerPort": 4000}
    assert container["args"][1:3] == ["--listen=0.0.0.0:4000", "--cell=$(CELL)"]
    for probe, path in (("startup", "live"), ("liveness", "live"), ("readiness", "ready")):
        assert container[f"{probe}Probe"]["httpGet"] == {
            "path": f"/v2/health/{path}",
            "port": "party",
            "scheme": "HTTPS",
        }
    for name in ("party", "party-0"):
        service = one(manifests, "Service", name)["spec"]
        assert service["publishNotReadyAddresses"] is True  # or nobody could share a model
        assert service["ports"] == [{"name": "party", "port": 4000, "targetPort": "party"}]
    assert party["serviceName"] == "party"
    assert one(manifests, "Service")["spec"]["clusterIP"] == "None"


def test_selectors_are_those_of_the_pods_and_of_nobody_else(manifests: list[Manifest]) -> None:
    party = one(manifests, "StatefulSet")["spec"]
    labels = party["template"]["metadata"].get("labels", SELECTOR) if KUBECTL else SELECTOR
    budget = one(manifests, "PodDisruptionBudget")["spec"]
    network = one(manifests, "NetworkPolicy")["spec"]
    for selector in (party["selector"], budget["selector"], network["podSelector"]):
        assert selector == {"matchLabels": SELECTOR}
    assert SELECTOR.items() <= labels.items()
    assert one(manifests, "Service")["spec"]["selector"] == SELECTOR
    outside = one(manifests, "Service", "party-0")["spec"]["selector"]
    assert outside == {"statefulset.kubernetes.io/pod-name": "party-0"}
    assert network["policyTypes"] == ["Ingress", "Egress"]
    assert network["ingress"][0] == {"ports": [{"protocol": "TCP", "port": 4000}]}
    parties, names = network["egress"]
    assert parties["ports"] == [{"protocol": "TCP", "port": 4000}]
    assert parties["to"][0]["podSelector"] == {"matchLabels": SELECTOR}
    # What kustomize adds to all selectors would cut the party off from the name servers.
    assert names["to"][0]["podSelector"] == {"matchLabels": {"k8s-app": "kube-dns"}}
    assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (0, "AlwaysAllow")


def test_which_cell_it_is_follows_from_the_pod(manifests: list[Manifest]) -> None:
    party = one(manifests, "StatefulSet")["spec"]
    (container,) = party["template"]["spec"]["containers"]
    environment = {entry["name"]: entry["valueFrom"] for entry in container["env"]}
    index = environment["CELL"]["fieldRef"]["fieldPath"]
    assert index == "metadata.labels['apps.kubernetes.io/pod-index']"
    key = environment[state_key.VARIABLE]["secretKeyRef"]
    assert key["optional"] is True  # without it the party keeps no share
    assert party["replicas"] == 1


def test_a_pod_is_given_the_time_that_its_queries_have(manifests: list[Manifest]) -> None:
    pod = one(manifests, "StatefulSet")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > Timeouts().drain + SHUTDOWN_SECONDS + MARGIN
    unit = (ROOT / "deploy" / "systemd" / "privserve-party@.service").read_text()
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert int(seconds) > Timeouts().drain + SHUTDOWN_SECONDS
    compose = (ROOT / "deploy" / "compose" / "common.yaml").read_text()
    (seconds,) = re.findall(r"stop_grace_period: (\d+)s", compose)
    assert int(seconds) > Timeouts().drain + SHUTDOWN_SECONDS


def test_what_a_party_has_to_remember_outlives_its_pod(manifests: list[Manifest]) -> None:
    party = one(manifests, "StatefulSet")["spec"]
    (container,) = party["template"]["spec"]["containers"]
    mounted = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert [claim["metadata"]["name"] for claim in party["volumeClaimTemplates"]] == ["state"]
    assert mounted["state"]["mountPath"] == "/var/lib/privserve"
    assert not any("subPath" in mount for mount in mounted.values())  # never renewed
    image = (ROOT / "deploy" / "party" / "Dockerfile").read_text()
    assert '"--state-dir", "/var/lib/privserve"' in image
    assert f"NUMBA_CACHE_DIR={mounted['kernels']['mountPath']}" in image
    assert f'"{mounted["files"]["mountPath"]}/cluster.toml"' in image


@needs_kubectl
@pytest.mark.parametrize("name", NAMES)
def test_each_party_is_alone_in_its_namespace_and_finds_its_files(
    name: str, tmp_path: Path
) -> None:
    """As docs/operations.md makes them, and as the party's cluster.toml calls them."""
    manifests = render(DEPLOY / name)
    names = {one["metadata"].get("namespace", one["metadata"]["name"]) for one in manifests}
    assert names == {f"privserve-{name}"}
    pod = one(manifests, "StatefulSet")["spec"]["template"]["spec"]
    assert pod["containers"][0]["args"][0] == f"--name={name}"
    home = write_cluster(tmp_path / "owner", addresses()).parent / name
    config, secret = (created(home, name, what) for what in ("config", "secret"))
    for manifest in (config, secret):
        kubernetes_validate.validate(manifest, VERSIONS[0], strict=True)
    sources = pod["volumes"][0]["projected"]["sources"]
    assert sources[0]["configMap"]["name"] == config["metadata"]["name"]
    assert sources[1]["secret"]["name"] == secret["metadata"]["name"]
    assert secret["type"] == "kubernetes.io/tls"
    items = {item["key"]: item["path"] for item in sources[1]["secret"]["items"]}
    assert set(items) == set(secret["data"])
    # What lies in /etc/privserve then:
    lying = {*config["data"], *items.values()}
    party = next(p for p in read_config(home / "cluster.toml").parties if p.name == name)
    assert {"cluster.toml", "ca.pem", party.cert.name, party.key.name} == lying


def created(home: Path, name: str, what: str) -> Manifest:
    """What the commands of docs/operations.md would send, without sending it."""
    text = (ROOT / "docs" / "operations.md").read_text().replace("\\\n", " ")
    kind = {"config": "create configmap", "secret": "create secret tls"}[what]
    (line,) = (line.strip() for line in text.splitlines() if kind in line)
    words = line.replace("bob", name).split()
    assert words[0] == "kubectl"
    ran = subprocess.run(
        [str(KUBECTL), *words[1:], "--dry-run=client", "--output=json"],
        cwd=home.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@needs_kubectl
@pytest.mark.parametrize("name", NAMES)
def test_prometheus_is_told_where_to_look_and_nobody_else_is_let_in(name: str) -> None:
    manifests = render(DEPLOY / name)
    template = one(manifests, "StatefulSet")["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert container["ports"][1] == {"name": "metrics", "containerPort": 9400}
    assert container["args"][3:] == ["--metrics=0.0.0.0:9400"]
    assert template["metadata"]["annotations"] == {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": "9400",
        "prometheus.io/path": "/metrics",
    }
    _, scraped = one(manifests, "NetworkPolicy")["spec"]["ingress"]
    assert scraped["ports"] == [{"protocol": "TCP", "port": 9400}]
    (namespace,) = scraped["from"]
    wanted = {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}
    assert namespace == {"namespaceSelector": wanted}
    for service in (m for m in manifests if m["kind"] == "Service"):
        assert [port["port"] for port in service["spec"]["ports"]] == [4000]


def with_component(tmp_path: Path, name: str) -> Path:
    """A copy of bob's manifests, with one more component."""
    shutil.copytree(DEPLOY, tmp_path / "kustomize")
    own = tmp_path / "kustomize" / "bob" / "kustomization.yaml"
    listed = own.read_text().replace("  - ../metrics\n", f"  - ../metrics\n  - ../{name}\n")
    own.write_text(listed)
    return own.parent


@needs_kubectl
@pytest.mark.parametrize("count", [2, 3])
def test_each_cell_has_a_pod_with_a_volume_and_an_address_of_its_own(
    count: int, tmp_path: Path
) -> None:
    own = with_component(tmp_path, "cells")
    if count == 3:  # as the component says
        cells = own.parent / "cells"
        more = (cells / "party-1.yaml").read_text().replace("party-1", "party-2")
        (cells / "party-2.yaml").write_text(more)
        listed = (cells / "kustomization.yaml").read_text()
        listed = listed.replace("count: 2", "count: 3")
        listed = listed.replace("\n  - party-1.yaml\n", "\n  - party-1.yaml\n  - party-2.yaml\n")
        (cells / "kustomization.yaml").write_text(listed)
    manifests = render(own)
    for manifest in manifests:
        kubernetes_validate.validate(manifest, VERSIONS[0], strict=True)
    assert one(manifests, "StatefulSet")["spec"]["replicas"] == count
    for cell in range(count):
        service = one(manifests, "Service", f"party-{cell}")
        assert service["metadata"]["namespace"] == "privserve-bob"
        pod = {"statefulset.kubernetes.io/pod-name": f"party-{cell}"}
        assert service["spec"]["selector"] == pod
        assert service["spec"] == {
            **one(manifests, "Service", "party-0")["spec"],
            "selector": pod,
        }
    budget = one(manifests, "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1  # the other cells go on


@needs_kubectl
def test_cert_manager_is_asked_for_what_the_party_has_to_be(tmp_path: Path) -> None:
    own = with_component(tmp_path, "issued")
    file = own.parent / "issued" / "certificate.yaml"
    file.write_text(file.read_text().replace("[NAME.CLUSTER.", "[bob.c1."))
    manifests = render(own)
    asked = one(manifests, "Certificate", "identity")
    assert asked["metadata"]["namespace"] == "privserve-bob"
    assert asked["spec"]["dnsNames"] == [identity("bob", "c1")]
    assert {"server auth", "client auth"} <= set(asked["spec"]["usages"])
    pod = one(manifests, "StatefulSet")["spec"]["template"]["spec"]
    secret = pod["volumes"][0]["projected"]["sources"][1]["secret"]
    assert secret["name"] == asked["spec"]["secretName"]
    assert [item["key"] for item in secret["items"]] == ["tls.crt", "tls.key"]  # as it makes it
    # Its file is read again within half a minute: long before the old one ends.
    assert asked["spec"]["renewBefore"] == f"{WARN_DAYS * 24:g}h"


@needs_kubectl
def test_parties_elsewhere_are_let_out_to_by_their_addresses(tmp_path: Path) -> None:
    network = one(render(with_component(tmp_path, "apart")), "NetworkPolicy")
    kubernetes_validate.validate(network, VERSIONS[0], strict=True)
    added = network["spec"]["egress"][2]
    assert [to["ipBlock"]["cidr"] for to in added["to"]] == ["192.0.2.10/32", "198.51.100.20/32"]
    assert added["ports"] == [{"protocol": "TCP", "port": 4000}]
