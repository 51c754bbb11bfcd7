"""What the network policies of a set of documents let through."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

from tests.k8s.manifests import Document, of_kind

NAMESPACE = "safetydpo"


class Peer(NamedTuple):
    """One end of a connection: a pod, or an address outside the cluster."""

    labels: dict[str, str]
    namespace: str = NAMESPACE
    address: str = ""
    namespace_labels: dict[str, str] = {}  # noqa: RUF012, a NamedTuple's default


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Say whether a label selector selects; an empty one selects all."""
    unknown = selector.keys() - {"matchLabels", "matchExpressions"}
    assert not unknown, unknown
    for rule in selector.get("matchExpressions", []):
        assert rule["operator"] == "In", rule
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items())


def allowed(documents: list[Document], source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    """Say whether a connection passes the policies at both of its ends."""
    policies = of_kind(documents, "NetworkPolicy")
    return _passes(policies, "Egress", source, target, port, protocol) and _passes(
        policies, "Ingress", target, source, port, protocol
    )


def _passes(policies: list[Document], way: str, end: Peer, other: Peer, port: int, protocol: str) -> bool:
    if end.namespace != NAMESPACE or end.address:
        return True
    ruling = [
        policy["spec"]
        for policy in policies
        if way in policy["spec"]["policyTypes"] and selects(policy["spec"]["podSelector"], end.labels)
    ]
    rules = [rule for spec in ruling for rule in spec.get(way.lower(), [])]
    peers = "to" if way == "Egress" else "from"
    return not ruling or any(
        any(_is(peer, other) for peer in rule[peers]) and _at(rule, port, protocol) for rule in rules
    )


def _is(peer: dict[str, Any], other: Peer) -> bool:
    if "ipBlock" in peer:
        block = peer["ipBlock"]
        assert all(ip_network(inner).subnet_of(ip_network(block["cidr"])) for inner in block.get("except", []))
        if not other.address or ip_address(other.address) not in ip_network(block["cidr"]):
            return False
        return not any(ip_address(other.address) in ip_network(network) for network in block.get("except", []))
    if other.address:
        return False
    space = {"kubernetes.io/metadata.name": other.namespace, **other.namespace_labels}
    in_space = (
        selects(peer["namespaceSelector"], space) if "namespaceSelector" in peer else other.namespace == NAMESPACE
    )
    return in_space and selects(peer.get("podSelector", {}), other.labels)


def _at(rule: dict[str, Any], port: int, protocol: str) -> bool:
    return "ports" not in rule or {"protocol": protocol, "port": port} in rule["ports"]
