"""The manifests are what Kubernetes' API takes, and fit together.

kubernetes.json has the definitions that they need of the package kubernetes-validate 1.37.0
(v1.37.0-local-strict), without their descriptions.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest
import yaml

import picospec.edge_agent.settings
import picospec.verifier.settings
from picospec.edge_agent.__main__ import GRACE_S

ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = ROOT / "deploy/k8s"
SCHEMAS: Final = json.loads((Path(__file__).parent / "kubernetes.json").read_text())
Manifest = dict[str, Any]


def manifests() -> list[Manifest]:
    files = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    return [each for file in files for each in yaml.safe_load_all((FOLDER / file).read_text())]


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
    files = {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert files == set(kustomization["resources"])


def test_the_edges_know_every_verifier_by_its_name() -> None:
    (verifiers,) = (m for m in manifests() if m["kind"] == "StatefulSet")
    urls = environment("picospec-edge")["PICOSPEC_EDGE__VERIFIER_URLS"]
    name, service = verifiers["metadata"]["name"], verifiers["spec"]["serviceName"]

    assert json.loads(urls) == [
        f"https://{name}-{i}.{service}:9000" for i in range(verifiers["spec"]["replicas"])
    ]


def test_a_pod_is_given_the_time_that_it_takes_to_drain() -> None:
    cloud = picospec.verifier.settings.load(None, {}, {})
    edge = picospec.edge_agent.settings.load(None, {}, {})
    needs = {
        "picospec-verifier": cloud.drain_timeout_s + cloud.stop_timeout_s,
        "picospec-edge": edge.drain_timeout_s + GRACE_S,
    }

    for name, seconds in needs.items():
        spec = pod(name)
        (command,) = values(spec["containers"], "command")
        assert int(command[1]) + seconds + 10 <= spec["terminationGracePeriodSeconds"]
