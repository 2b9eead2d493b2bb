"""The network policies let through who is named, and nobody else."""

from __future__ import annotations

import ipaddress
from typing import Any, Final

import pytest

from tests.deploy.test_kubernetes import manifests

Peer = dict[str, Any]
NAME: Final = "app.kubernetes.io/name"
EDGE: Final[Peer] = {"pod": {NAME: "picospec-edge"}}
VERIFIER: Final[Peer] = {"pod": {NAME: "picospec-verifier"}}
NEIGHBOUR: Final[Peer] = {"pod": {NAME: "other"}}
CLIENT: Final[Peer] = {"namespace": {"picospec-clients": "true"}, "pod": {}}
MONITORING: Final[Peer] = {
    "namespace": {"kubernetes.io/metadata.name": "monitoring"},
    "pod": {},
}
STRANGER: Final[Peer] = {"namespace": {"kubernetes.io/metadata.name": "x"}, "pod": EDGE["pod"]}
DNS: Final[Peer] = {"namespace": {"kubernetes.io/metadata.name": "kube-system"}, "pod": {}}


def address(text: str) -> Peer:
    return {"address": ipaddress.ip_address(text)}


def meets(selector: dict[str, Any] | None, labels: dict[str, str] | None) -> bool:
    """Return whether labels are selected; no selector selects what has none."""
    if selector is None or labels is None:
        return selector is labels
    return selector.get("matchLabels", {}).items() <= labels.items()


def is_peer(rule: dict[str, Any], peer: Peer) -> bool:
    if "ipBlock" in rule:
        block, here = rule["ipBlock"], peer.get("address")
        networks = [ipaddress.ip_network(each) for each in block["except"]]
        inside = here and here in ipaddress.ip_network(block["cidr"])
        return bool(inside) and not any(here in network for network in networks)
    pods = "podSelector" not in rule or meets(rule["podSelector"], peer.get("pod"))
    return pods and meets(rule.get("namespaceSelector"), peer.get("namespace"))


def passes(way: str, own: Peer, peer: Peer, port: int) -> bool:
    """Return whether the policies of a pod let it reach, or be reached by, a peer."""
    kind, side = {"in": ("Ingress", "from"), "out": ("Egress", "to")}[way]
    specs = [
        each["spec"]
        for each in manifests()
        if each["kind"] == "NetworkPolicy"
        and kind in each["spec"]["policyTypes"]
        and meets(each["spec"]["podSelector"], own["pod"])
    ]
    assert specs, "what no policy is about may do everything"
    return any(
        port in [each["port"] for each in rule["ports"]]
        and any(is_peer(each, peer) for each in rule[side])
        for spec in specs
        for rule in spec.get(kind.lower(), [])
    )


@pytest.mark.parametrize(
    ("way", "own", "peer", "port", "expected"),
    [
        ("in", VERIFIER, EDGE, 9000, True),
        ("in", VERIFIER, MONITORING, 9000, True),
        ("in", VERIFIER, NEIGHBOUR, 9000, False),
        ("in", VERIFIER, CLIENT, 9000, False),
        ("in", VERIFIER, STRANGER, 9000, False),
        ("in", VERIFIER, EDGE, 22, False),
        ("in", EDGE, CLIENT, 8000, True),
        ("in", EDGE, MONITORING, 8000, True),
        ("in", EDGE, STRANGER, 8000, False),
        ("in", EDGE, NEIGHBOUR, 8000, False),
        ("in", NEIGHBOUR, EDGE, 80, False),
        ("out", EDGE, VERIFIER, 9000, True),
        ("out", VERIFIER, EDGE, 8000, False),
        *[("out", own, DNS, 53, True) for own in (EDGE, VERIFIER)],
        *[("out", own, address("8.8.4.4"), 443, True) for own in (EDGE, VERIFIER)],
        *[("out", own, address("8.8.4.4"), 80, False) for own in (EDGE, VERIFIER)],
        *[("out", own, address("169.254.169.254"), 443, False) for own in (EDGE, VERIFIER)],
        *[("out", own, address("10.1.2.3"), 443, False) for own in (EDGE, VERIFIER)],
    ],
)
def test_who_reaches_whom(way: str, own: Peer, peer: Peer, port: int, expected: bool) -> None:
    assert passes(way, own, peer, port) is expected
