"""The edge's image: the command of its header, and compose.yaml with both ends from it."""

from __future__ import annotations

import pytest

from tests.images.docker import ROOT, compose, run, written
from tests.images.services import ask, until, verifier

pytestmark = pytest.mark.images

KEYS = {"PICOSPEC_API_KEYS": "clients-key", "PICOSPEC_VERIFIER_KEY": "edges-key"}
EDGE = "http://127.0.0.1:8000"
VERIFIER_PORT = 9000


def test_the_command_of_the_header_starts_an_edge_that_fetches_its_model_and_answers() -> None:
    words = " ".join(written(ROOT / "Dockerfile.edge", "run"))
    command = words.replace("https://verifier.example", f"http://127.0.0.1:{VERIFIER_PORT}")
    container = run(command.split(), KEYS)
    try:
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
    finally:
        status_at_end = container.stop()
        log = container.log.read_text()
        container.remove()
    assert status_at_end == 0, log
    assert "smollm2-135m-q4_0: downloading" in log, log


def test_compose_starts_both_ends_and_each_fetches_its_model() -> None:
    key = KEYS["PICOSPEC_API_KEYS"]
    with pytest.raises(ValueError, match="PICOSPEC_API_KEYS: set it"):
        compose({})

    services = compose({"PICOSPEC_API_KEYS": key, "PICOSPEC_MODEL": "smollm2"})
    try:
        until(EDGE, "/ready", 200, 300, services["edge"])
        answer = ask(EDGE, key)
        assert answer == ask(f"http://127.0.0.1:{VERIFIER_PORT}", key)
        assert [each.check_health() for each in services.values()] == [0, 0]
    finally:
        statuses = [services[name].stop() for name in ("edge", "verifier")]
        logs = {name: each.log.read_text() for name, each in services.items()}
        for each in services.values():
            each.remove()
    assert statuses == [0, 0], logs
    assert "smollm2: downloading" in logs["verifier"], logs
