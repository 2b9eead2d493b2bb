"""`make pin` writes the digest of each base image and the commit of each model beside its name.

A tag and a branch can be moved; a digest and a commit cannot. An image is asked for at its
registry by the distribution API of OCI, without a request context, and a model at the hub.
Nothing is written of a file in which one of them is not found. Files that are named in place of
FILES are pinned instead: deploy/k8s/kustomization.yaml, for one, when your images are at their
registry."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import httpx

ROOT: Final = Path(__file__).parents[1]
FILES: Final = ("Dockerfile.edge", "Dockerfile.cloud", "deploy/k8s/verifier.yaml")
TIMEOUT_S: Final = 30.0
REGISTRY: Final = "IMAGE_REGISTRY"
"""The variable that names the host of images whose names begin with none, which differs between
container engines."""

ACCEPT: Final = (
    "application/vnd.oci.image.index.v1+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json, "
    "application/vnd.oci.image.manifest.v1+json, "
    "application/vnd.docker.distribution.manifest.v2+json"
)
"""The kinds of manifest, those of several platforms first."""

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_BASE: Final = re.compile(r"(?m)^(ARG BASE=)([^\s@]+:[^\s@]+)(?:@sha256:\w+)?$")
_OWN: Final = re.compile(r'(newName: )([^\s,]+)(, newTag: ")([^"]+)"(?:, digest: "[^"]*")?')
_MODEL: Final = re.compile(r"--model=(\S+)\s+- --vllm\.revision=(?=\S)")
_REVISION: Final = re.compile(r"(--vllm\.revision=)\S+")


class NotFound(Exception):
    """A registry or the hub does not say what a name means."""


def digest_of(image: str, http: httpx.Client) -> str:
    """Return the digest of NAME:TAG, whose name may begin with a host. Raises NotFound."""
    name, _, tag = image.rpartition(":")
    host, _, path = name.partition("/")
    if not path or not (set(host) & {".", ":"} or host == "localhost"):
        host, path = os.environ.get(REGISTRY, ""), name if "/" in name else f"library/{name}"
    if not host:
        raise NotFound(f"{image}: set {REGISTRY} to the host that your container engine asks")
    is_here = host.partition(":")[0] in ("localhost", "127.0.0.1")
    url = f"{'http' if is_here else 'https'}://{host}/v2/{path}/manifests/{tag}"
    answer = http.head(url, headers={"accept": ACCEPT})
    if answer.status_code == 401:
        token = _token(answer.headers.get("www-authenticate", ""), http)
        headers = {"accept": ACCEPT, "authorization": f"Bearer {token}"}
        answer = http.head(url, headers=headers)
    digest = answer.headers.get("docker-content-digest", "")
    return _matching(_DIGEST, digest, f"{image}: HTTP {answer.status_code}")


def _token(challenge: str, http: httpx.Client) -> str:
    """Return the token that a registry asks for; whoever asks as it says gets one."""
    parameters: Mapping[str, str] = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    if "realm" not in parameters:
        raise NotFound(f"a registry asks for {challenge[:80]!r}")
    wanted = {name: parameters[name] for name in ("service", "scope") if name in parameters}
    answer = http.get(parameters["realm"], params=wanted).raise_for_status().json()
    return str(answer.get("token") or answer.get("access_token"))


def commit_of(model: str) -> str:
    """Return the newest commit of a model's branch main. Raises NotFound."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        commit = HfApi(os.environ.get("HF_ENDPOINT")).model_info(model, timeout=TIMEOUT_S).sha
    except (HfHubHTTPError, OSError) as error:
        raise NotFound(f"{model}: {error}") from error
    return _matching(_COMMIT, commit or "", model)


def _matching(form: re.Pattern[str], text: str, what: str) -> str:
    if form.fullmatch(text) is None:
        raise NotFound(f"{what}, and {text[:80]!r} in place of a digest or a commit")
    return text


def pinned(text: str, digest: Callable[[str], str], commit: Callable[[str], str]) -> str:
    """Return a file's text with what each name of it means now."""
    text = _BASE.sub(lambda m: f"{m[1]}{m[2]}@{digest(m[2])}", text)
    text = _OWN.sub(
        lambda m: f'{m[1]}{m[2]}{m[3]}{m[4]}", digest: "{digest(f"{m[2]}:{m[4]}")}"', text
    )
    if model := _MODEL.search(text):
        text = _REVISION.sub(lambda m: m[1] + commit(model[1]), text)
    return text


def main(files: Sequence[str]) -> int:
    """Pin files, and say what is not found. Return the status."""
    status = 0
    with httpx.Client(timeout=TIMEOUT_S) as http:
        for file in files or FILES:
            path = ROOT / file
            try:
                text = path.read_text("utf-8")
                path.write_text(
                    pinned(text, lambda name: digest_of(name, http), commit_of), "utf-8"
                )
            except (NotFound, httpx.HTTPError, OSError, ValueError) as error:
                sys.stderr.write(f"error: {file}: {error}\n")
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
