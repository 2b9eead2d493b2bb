"""What deploy/ holds fits to Kubernetes' API, to the images, and to what the services show.

kubernetes.json has the definitions that they need of the package kubernetes-validate 1.37.0
(v1.37.0-local-strict), without their descriptions.
"""

from __future__ import annotations

import copy
import ipaddress
import json
import re
import ssl
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import jsonschema
import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, ConfigDict, Field

import edge_agent.settings
import verifier.settings
from edge_agent.__main__ import GRACE_S
from edge_agent.metrics import EdgeMetrics
from gateway.metrics import Metrics
from gateway.tenant_limits import TenantMetrics
from verifier.metrics import VerifierMetrics

ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = ROOT / "deploy/k8s"
OPTIONAL: Final = "autoscale.yaml"
"""A cluster may lack what this file needs."""

SCHEMAS: Final = json.loads((Path(__file__).parent / "kubernetes.json").read_text())
Manifest = dict[str, Any]


def manifests() -> list[Manifest]:
    resources = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    files = [FOLDER / name for name in (*resources, OPTIONAL)]
    return [each for file in files for each in yaml.safe_load_all(file.read_text())]


def test_images_and_documents_name_the_version_of_pyproject_toml() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), FOLDER / "kustomization.yaml"]
    named = r'(?:picospec-|-edge:|-verifier:|newTag: "|tag --sign v|origin v)(\d+\.\d+\.\d+)'

    assert {each for file in files for each in re.findall(named, file.read_text())} == {version}


def check(manifest: Manifest) -> None:
    """Raise jsonschema.ValidationError unless the API takes a manifest."""
    group, _, version = manifest["apiVersion"].rpartition("/")
    name = f"io.k8s.api.{group.removesuffix('.k8s.io') or 'core'}.{version}.{manifest['kind']}"
    jsonschema.Draft202012Validator({"$ref": f"#/$defs/{name}", **SCHEMAS}).validate(manifest)


def values(tree: object, *names: str) -> Iterator[Any]:
    """Yield what stands under one of these names, at any depth."""
    for name, value in tree.items() if isinstance(tree, dict) else ():
        if name in names:
            yield value
    for value in tree.values() if isinstance(tree, dict) else tree:  # type: ignore[attr-defined]
        if isinstance(value, dict | list):
            yield from values(value, *names)


def spec_of(kind: str, name: str) -> Manifest:
    (found,) = (m for m in manifests() if (m["kind"], m["metadata"]["name"]) == (kind, name))
    return dict(found["spec"])


def pod(name: str) -> Manifest:
    (found,) = (
        m for m in manifests() if m["metadata"]["name"] == name and "template" in m["spec"]
    )
    return dict(found["spec"]["template"]["spec"])


def environment(name: str) -> dict[str, str]:
    """Return the variables of a pod that are no secrets."""
    (container,) = pod(name)["containers"]
    return {each["name"]: each["value"] for each in container["env"] if "value" in each}


@pytest.mark.parametrize(
    "manifest", manifests(), ids=lambda m: f"{m['kind']} {m['metadata']['name']}"
)
def test_kubernetes_takes_the_manifest(manifest: Manifest) -> None:
    check(manifest)


def test_a_misspelt_field_a_wrong_type_and_a_missing_field_are_found() -> None:
    (good,) = (m for m in manifests() if m["kind"] == "Deployment")
    misspelt, wrong, missing = (copy.deepcopy(good) for _ in range(3))
    container = misspelt["spec"]["template"]["spec"]["containers"][0]
    container["readynessProbe"] = container.pop("readinessProbe")
    wrong["spec"]["replicas"] = "two"
    del missing["spec"]["selector"]

    for bad, reason in ((misspelt, "readynessProbe"), (wrong, "two"), (missing, "selector")):
        with pytest.raises(jsonschema.ValidationError, match=reason):
            check(bad)


def test_every_name_that_a_manifest_uses_exists() -> None:
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    secrets = {each["name"] for each in kustomization["secretGenerator"]}
    names = {(m["kind"], m["metadata"]["name"]) for m in manifests()}
    labels = {m["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"]
              for m in manifests() if "template" in m["spec"]}  # fmt: skip

    assert {each["name"] for each in values(manifests(), "secretKeyRef")} <= secrets
    assert {("Service", name) for name in values(manifests(), "serviceName")} <= names
    names_meant = {
        each.get("app.kubernetes.io/name") for each in values(manifests(), "matchLabels")
    }
    assert names_meant - {None} == labels
    assert {each["secretName"] for each in values(manifests(), "secret")} <= secrets
    assert {s.get("app.kubernetes.io/name") or s["matchLabels"]["app.kubernetes.io/name"]
            for s in values(manifests(), "selector")} == labels  # fmt: skip
    assert {each["name"] for each in kustomization["images"]} == set(
        values(manifests(), "image")
    )
    files = {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml", OPTIONAL}
    assert files == set(kustomization["resources"])


@pytest.mark.parametrize("name", ["picospec-verifier", "picospec-edge"])
def test_each_volume_is_mounted_where_the_image_writes_and_its_user_may(name: str) -> None:
    spec = pod(name)
    dockerfile = {"picospec-verifier": "Dockerfile.cloud", "picospec-edge": "Dockerfile.edge"}[
        name
    ]
    image = (ROOT / dockerfile).read_text()
    (volume,) = json.loads(image.split("\nVOLUME ")[1].split("\n")[0])
    (container,) = spec["containers"]

    assert f"USER {spec['securityContext']['runAsUser']}:" in image
    assert spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsGroup"]
    assert volume in [mount["mountPath"] for mount in container["volumeMounts"]]
    (port,) = container["ports"]
    assert f"EXPOSE {port['containerPort']}" in image


def test_the_edges_find_every_verifier_behind_one_name() -> None:
    name = spec_of("StatefulSet", "picospec-verifier")["serviceName"]
    service = spec_of("Service", name)
    urls = json.loads(environment("picospec-edge")["PICOSPEC_EDGE__VERIFIER_URLS"])

    assert urls == [f"dns+https://{name}:{service['ports'][0]['port']}"]
    settings = edge_agent.settings.load(None, {}, {"verifier_urls": urls})
    assert [str(url) for url in settings.verifiers] == urls
    assert (service["clusterIP"], service["publishNotReadyAddresses"]) == ("None", True)


def test_a_pod_is_given_the_time_that_it_takes_to_drain() -> None:
    cloud = verifier.settings.load(None, {}, {})
    edge = edge_agent.settings.load(None, {}, {})
    needs = {
        "picospec-verifier": cloud.drain_timeout_s + cloud.stop_timeout_s,
        "picospec-edge": edge.drain_timeout_s + GRACE_S,
    }

    for name, seconds in needs.items():
        spec = pod(name)
        (command,) = values(spec["containers"], "command")
        assert int(command[1]) + seconds + 10 <= spec["terminationGracePeriodSeconds"]


def test_liveness_restarts_no_pod_that_loads_and_readiness_sends_it_no_work() -> None:
    for name in ("picospec-verifier", "picospec-edge"):
        (container,) = pod(name)["containers"]
        asks = {kind: container[f"{kind}Probe"]["httpGet"]["path"]
                for kind in ("startup", "liveness", "readiness")}  # fmt: skip
        assert asks == {"startup": "/health", "liveness": "/health", "readiness": "/ready"}


@pytest.mark.parametrize("name", ["picospec-verifier", "picospec-edge"])
def test_a_pod_writes_nowhere_but_to_its_volumes(name: str) -> None:
    (container,) = pod(name)["containers"]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}

    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert "/tmp" in mounts
    assert {Path(value).parent.as_posix() for value in environment(name).values()
            if value.startswith("/")} <= mounts  # fmt: skip


def test_the_documented_commands_make_a_certificate_for_each_name_of_the_verifiers(
    tmp_path: Path,
) -> None:
    text = (FOLDER / "kustomization.yaml").read_text()
    commands = re.findall(r"^# +(openssl req .*)", text.replace("\\\n#", ""), re.MULTILINE)
    for command in commands:
        subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    secret = {each["name"]: each for each in yaml.safe_load(text)["secretGenerator"]}
    urls = json.loads(environment("picospec-edge")["PICOSPEC_EDGE__VERIFIER_URLS"])

    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    client = ssl.create_default_context(cafile=tmp_path / "ca.crt")
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    for name in [*(urlsplit(url).hostname for url in urls), "picospec-verifier"]:
        shake_hands(client, server, str(name))
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(client, server, "picospec-edge")
    assert all((tmp_path / file).exists() for file in secret["picospec-tls"]["files"])
    assert (tmp_path / "tls.key").read_text().startswith("-----BEGIN PRIVATE KEY-----")


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> None:
    """Let a client open TLS to a server that it knows by a name. Raises ssl.SSLError."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(down, up, server_hostname=name),
        server.wrap_bio(up, down, server_side=True),
    ]
    for end in ends * 2:
        with suppress(ssl.SSLWantReadError):
            end.do_handshake()


# The network policies let through who is named, and nobody else.

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
        networks = [ipaddress.ip_network(each) for each in block.get("except", ())]
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


PEERS: Final[dict[str, Peer]] = {
    "edge": EDGE, "verifier": VERIFIER, "neighbour": NEIGHBOUR, "client": CLIENT,
    "monitoring": MONITORING, "stranger": STRANGER, "DNS": DNS,
    "a node's DNS": address("169.254.20.10"), "a cloud's DNS": address("169.254.169.254"),
    "a node": address("169.254.1.1"), "the internet": address("8.8.4.4"),
    "the cluster": address("10.1.2.3"),
}  # fmt: skip
PORTS: Final = (22, 53, 80, 443, 4318, 8000, 9000)
OUTSIDE: Final = {
    "DNS": [53], "a node's DNS": [53], "a cloud's DNS": [53], "monitoring": [4318],
    "the internet": [443],
}  # fmt: skip
"""Each service reaches these peers, at these ports."""


@pytest.mark.parametrize(
    ("way", "own", "expected"),
    [
        ("in", VERIFIER, {"edge": [9000], "monitoring": [9000]}),
        ("in", EDGE, {"client": [8000], "monitoring": [8000]}),
        ("in", NEIGHBOUR, {}),
        ("out", EDGE, {"verifier": [9000], **OUTSIDE}),
        ("out", VERIFIER, OUTSIDE),
    ],
    ids=["to a verifier", "to an edge", "to a neighbour", "from an edge", "from a verifier"],
)
def test_who_reaches_whom(way: str, own: Peer, expected: dict[str, list[int]]) -> None:
    found = {
        name: ports
        for name, peer in PEERS.items()
        if (ports := [port for port in PORTS if passes(way, own, peer, port)])
    }

    assert found == expected


# The dashboard and the alert rules name only what the services show, in PromQL that parses.

SCRAPED: Final = frozenset({"job", "instance"})
"""Labels that Prometheus adds."""

ENDINGS: Final = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_sum", "_count"),
    "info": ("_info",),
}
VLLMS: Final = ("vllm:kv_cache_usage_perc", "vllm:num_requests_waiting")
"""vLLM's own, in the place of ours."""


def shown() -> Mapping[str, frozenset[str]]:
    """The labels of each series that an edge or a verifier shows, by its name."""
    edge, verifier = CollectorRegistry(), CollectorRegistry()
    Metrics(edge)
    EdgeMetrics(edge)
    VerifierMetrics(verifier).follow("", float, int)
    TenantMetrics(verifier)
    series = {"up": SCRAPED, **dict.fromkeys(VLLMS, SCRAPED)}
    for registry in (edge, verifier):
        for collector in registry._collector_to_names:
            labels = SCRAPED.union(getattr(collector, "_labelnames", ()))
            for family in collector.collect():
                for ending in ENDINGS.get(family.type, ("",)):
                    more = {"le"} if ending == "_bucket" else set()
                    series[family.name + ending] = labels | more
    return series


GRAFANAS: Final = {"$__rate_interval": "1m", "$verifier": "v", "$edge": "e"}


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rule(Strict):
    alert: Annotated[str, Field(pattern=r"Picospec[A-Za-z]+")]
    expr: str
    for_: Annotated[str, Field(pattern=r"\d+[smh]", alias="for")] = "0s"
    labels: dict[Literal["severity"], Literal["warning", "critical"]]
    annotations: dict[Literal["summary", "description"], str]


class Group(Strict):
    name: str
    rules: list[Rule]


class Rules(Strict):
    groups: list[Group]


def rules() -> list[Rule]:
    text = (ROOT / "deploy/prometheus" / "alerts.yaml").read_text("utf-8")
    return [rule for group in Rules(**yaml.safe_load(text)).groups for rule in group.rules]


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / "deploy/grafana" / "picospec.json").read_text())
    return loaded


def queries() -> Iterator[str]:
    """Every PromQL expression, with Grafana's variables replaced."""
    yield from (rule.expr for rule in rules())
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            expression: str = target["expr"]
            for name, value in GRAFANAS.items():
                expression = expression.replace(name, value)
            yield expression


def selectors(expression: str) -> list[tuple[str, set[str]]]:
    """The series that a query names, with the labels that it selects them by."""
    found: list[tuple[str, set[str]]] = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.MatrixSelector):
            node = node.vector_selector
        if isinstance(node, promql_parser.VectorSelector):
            found.append((node.name or "", {each.name for each in node.matchers.matchers}))

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


def grouped_by(expression: str) -> set[str]:
    labels: set[str] = set()

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier:
            labels.update(node.modifier.labels)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return labels


@pytest.mark.parametrize("expression", list(queries()))
def test_each_query_names_series_and_labels_that_exist(expression: str) -> None:
    series, named = shown(), selectors(expression)

    assert named
    for name, labels in named:
        assert name in series
        assert labels <= series[name]
    assert grouped_by(expression) <= frozenset().union(*(series[name] for name, _ in named))


@pytest.mark.parametrize(
    "wrong",
    [
        "rate(picospec:requests_totl[5m])",
        'picospec:requests_total{state="500"}',
        "picospec:pass_seconds",
        "sum by (state) (picospec:requests_total)",
        "1",
    ],
)
def test_a_query_of_what_does_not_exist_is_noticed(wrong: str) -> None:
    with pytest.raises(AssertionError):
        test_each_query_names_series_and_labels_that_exist(wrong)


def test_the_dashboards_variables_are_looked_up_where_they_exist() -> None:
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            metric = variable["query"].removeprefix("label_values(").partition(",")[0]
            assert metric in shown()
            assert f"${variable['name']}" in GRAFANAS


def test_the_autoscaler_follows_what_verifiers_show_and_changes_their_number() -> None:
    scaler = spec_of("HorizontalPodAutoscaler", "picospec-verifier")
    commented = re.findall(r"^# {6}(.*)", (FOLDER / OPTIONAL).read_text(), re.MULTILINE)
    (rule,) = yaml.safe_load("\n".join(commented))
    series = rule["seriesQuery"].partition("{")[0]
    (metric,) = scaler["metrics"]
    verifiers = scaler["scaleTargetRef"]

    assert series in shown()
    name = re.sub(rule["name"]["matches"], rule["name"]["as"].replace("$", "\\"), series)
    assert metric["pods"]["metric"]["name"] == name
    replicas = spec_of(verifiers["kind"], verifiers["name"])["replicas"]
    assert 2 <= scaler["minReplicas"] == replicas < scaler["maxReplicas"] <= 64
