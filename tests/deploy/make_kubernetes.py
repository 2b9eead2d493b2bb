"""`python -m tests.deploy.make_kubernetes WHEEL` writes `kubernetes.json`.

It holds the schemas of Kubernetes' API that `deploy/k8s` needs, without their descriptions.
WHEEL is that of the package kubernetes-validate (22 MB): `pip download --no-deps
kubernetes-validate==1.37.0`.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

VERSION: Final = "1.37.0"
FOLDER: Final = f"kubernetes_validate/kubernetes-json-schema/v{VERSION}-local-strict"
KINDS: Final = {
    "Deployment": "apps.v1",
    "StatefulSet": "apps.v1",
    "Service": "core.v1",
    "PersistentVolumeClaim": "core.v1",
    "Secret": "core.v1",
    "PodDisruptionBudget": "policy.v1",
    "NetworkPolicy": "networking.v1",
}
FILE: Final = Path(__file__).parent / "kubernetes.json"


def references(schema: Any) -> Iterator[str]:  # noqa: ANN401 - JSON
    """Yield the names of the definitions that a schema uses."""
    if isinstance(schema, dict):
        if isinstance(name := schema.get("$ref"), str):
            yield name.rsplit("/", 1)[1]
        for value in schema.values():
            yield from references(value)
    if isinstance(schema, list):
        for value in schema:
            yield from references(value)


def without_prose(schema: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(schema, dict):
        return {
            name: without_prose(value)
            for name, value in schema.items()
            if not (name == "description" and isinstance(value, str))
        }
    return [without_prose(value) for value in schema] if isinstance(schema, list) else schema


def make(wheel: Path) -> dict[str, Any]:
    with zipfile.ZipFile(wheel) as archive:
        every = json.loads(archive.read(f"{FOLDER}/_definitions.json"))["$defs"]
    wanted, found = [f"io.k8s.api.{group}.{kind}" for kind, group in KINDS.items()], {}
    while wanted:
        if (name := wanted.pop()) not in found:
            found[name] = without_prose(every[name])
            wanted += references(found[name])
    return {"version": VERSION, "$defs": dict(sorted(found.items()))}


if __name__ == "__main__":
    FILE.write_text(json.dumps(make(Path(sys.argv[1])), separators=(",", ":")) + "\n")
