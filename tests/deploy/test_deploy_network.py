"""Who may reach whom: the chart's network policies beside what the code calls."""

from __future__ import annotations

import ast
import itertools
from typing import Any

import pytest

from shoal_runtime.config import ROLES
from tests.deploy.chart import EVALUATION, EVERYTHING, PRODUCTION, ROOT, Helm, Manifest, of_kind, workloads

GRPC = {"frontend": 8800, "sysdb": 8801, "logservice": 8802, "querynode": 8803, "compactor": 8804}
STORE_PORTS = {"postgres": 5432, "etcd": 2379, "s3": 8333}
USES = {
    "frontend": {"etcd"},
    "sysdb": {"etcd", "postgres"},
    "logservice": {"etcd", "postgres", "s3"},
    "querynode": {"etcd", "s3"},
    "compactor": {"etcd", "s3"},
}
# A member of Peers (shoal_cli.peers) → the role that answers.
ANSWERS = {"catalog": "sysdb", "access": "sysdb", "functions": "sysdb", "log": "logservice", "nodes": "querynode"}


def called_roles() -> dict[str, set[str]]:
    """Role → the roles that it calls: which of its peers the code that builds it hands on."""
    tree = ast.parse((ROOT / "libs/cli/shoal_cli/roles.py").read_text(encoding="utf-8"))
    builders = {node.name: node for node in tree.body if isinstance(node, ast.AsyncFunctionDef)}
    names = {
        "sysdb": "sysdb",
        "logservice": "log",
        "querynode": "query",
        "compactor": "compactor",
        "frontend": "frontend",
    }
    found = {}
    for role, name in names.items():
        attributes = [node for node in ast.walk(builders[f"_build_{name}"]) if isinstance(node, ast.Attribute)]
        peers = {node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id == "peers"}
        found[role] = {ANSWERS[peer] for peer in peers if peer in ANSWERS}
    return found


def peer_matches(peer: Manifest, labels: dict[str, str]) -> bool:
    """Whether a pod of this namespace is a peer; only what the chart itself renders for roles and stores."""
    selector = peer.get("podSelector", {}).get("matchLabels")
    return selector is not None and "namespaceSelector" not in peer and selector.items() <= labels.items()


def admitted(rules: list[Manifest], key: str, labels: dict[str, str]) -> set[int]:
    """The ports that ``rules`` open towards, or from, a pod with these labels by naming it."""
    found = [rule for rule in rules if any(peer_matches(peer, labels) for peer in rule.get(key, ()))]
    return {port["port"] for rule in found for port in rule["ports"]}


def labels_of(manifests: list[Manifest]) -> dict[str, dict[str, str]]:
    every = of_kind(manifests, "Deployment", "StatefulSet")
    return {name: each["spec"]["template"]["metadata"]["labels"] for name, each in every.items()}


@pytest.fixture
def closed(helm: Helm) -> list[Manifest]:
    """Everything within the release, with policies."""
    return helm.template(*EVALUATION, "--set", "networkPolicy.enabled=true")


def test_roles_reach_exactly_the_roles_and_stores_they_call(closed: list[Manifest]) -> None:
    labels, policies = labels_of(closed), of_kind(closed, "NetworkPolicy")
    calls = called_roles()
    assert calls["frontend"] == {"sysdb", "logservice", "querynode"}  # the reading of the code found something
    for source, target in itertools.permutations(labels, 2):
        wanted: set[int] = set()
        if source in ROLES and target in ROLES and target in calls[source]:
            wanted = {GRPC[target]}
        elif source in ROLES and target in USES[source]:
            wanted = {STORE_PORTS[target]}
        ingress = admitted(policies[target]["spec"].get("ingress", []), "from", labels[source])
        egress = admitted(policies[source]["spec"].get("egress", []), "to", labels[target])
        assert (source, target, ingress) == (source, target, wanted)
        assert (source, target, egress) == (source, target, wanted)


def test_nothing_is_open_but_by_a_rule(closed: list[Manifest]) -> None:
    policies = of_kind(closed, "NetworkPolicy")
    assert policies.keys() == labels_of(closed).keys()
    for name, policy in policies.items():
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        for rule in policy["spec"].get("ingress", ()):
            assert rule["from"], name
            assert rule["ports"], name
        anywhere = [rule for rule in policy["spec"].get("egress", ()) if "to" not in rule]
        assert {port["port"] for rule in anywhere for port in rule["ports"]} <= {53}


def test_callers_reach_the_frontends_only(helm: Helm) -> None:
    policies = of_kind(helm.template(*PRODUCTION), "NetworkPolicy")
    callers = {"namespaceSelector": {"matchLabels": {"shoal-callers": "true"}}}
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    for role in ROLES:
        rules = policies[role]["spec"]["ingress"]
        from_callers = [port["port"] for rule in rules if callers in rule["from"] for port in rule["ports"]]
        assert from_callers == ([8800, 8000] if role == "frontend" else [])
        assert [rule["ports"][0]["port"] for rule in rules if monitoring in rule["from"]] == [GRPC[role] + 1000]


def test_external_stores_by_port_and_address(helm: Helm) -> None:
    policies = of_kind(helm.template(*EVERYTHING), "NetworkPolicy")
    rules: list[Any] = policies["sysdb"]["spec"]["egress"]
    ports = [{"port": 5432, "protocol": "TCP"}, {"port": 6432, "protocol": "TCP"}]
    assert {"ports": ports, "to": [{"ipBlock": {"cidr": "10.1.0.0/24"}}]} in rules
    assert rules[-1]["ports"] == [{"port": 4317, "protocol": "TCP"}]
    assert {"ports": ports, "to": [{"ipBlock": {"cidr": "10.1.0.0/24"}}]} in policies["migrate"]["spec"]["egress"]
    assert "ingress" not in policies["migrate"]["spec"]
    nodes = [
        rule for rule in policies["sysdb"]["spec"]["ingress"] if {"ipBlock": {"cidr": "10.0.0.0/16"}} in rule["from"]
    ]
    assert [[port["port"] for port in rule["ports"]] for rule in nodes] == [[8801, 9801]]


def test_no_policies_unless_asked(helm: Helm) -> None:
    assert not of_kind(helm.template(), "NetworkPolicy")
    assert workloads(helm.template()).keys() == set(ROLES)
