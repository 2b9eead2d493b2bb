"""Verifiers behind a name are scaled up and down under load, with real models.

The rules are those of tests/edge_agent/test_names.py, on a virtual clock.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from bench.run.services import free_port
from local_models.store import open_store
from tests.end_to_end.fleet import SETTINGS, Answer, Fleet, ask
from tests.guards import GUARD_S

pytestmark = [pytest.mark.models, pytest.mark.long]

MANY: Final = int(os.environ.get("PICOSPEC_TEST_VERIFIERS", "3"))
TOKENS: Final = 100
STREAMS: Final = int(os.environ.get("PICOSPEC_TEST_STREAMS", "4"))


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    open_store(os.environ).pull("smollm2", lambda what, done, total: None)
    started = Fleet()
    yield started
    started.end()


def known(edge: str) -> list[dict[str, Any]]:
    verifiers: list[dict[str, Any]] = httpx.get(f"{edge}/status").json()["verifiers"]
    return verifiers


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + GUARD_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_answers_go_on_while_verifiers_come_and_go(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PICOSPEC_VERIFIER__ALLOWED_HOSTS", '["verifiers"]')
    port, addresses = free_port(), [f"127.0.0.{i}" for i in range(1, MANY + 1)]
    urls = [f"http://{address}:{port}" for address in addresses]
    for address, url in zip(addresses, urls, strict=True):
        fleet.verifier(url, 0.2, "--host", address)
    fleet.until_ready(*urls)
    name = tmp_path / "addresses"
    name.write_text(addresses[0])
    edge = fleet.edge(
        f"dns+http://verifiers:{port}", module="tests.end_to_end.named", ADDRESSES=str(name)
    )
    fleet.until_ready(edge)
    undisturbed = {each: ask(edge, SETTINGS[each], tokens=TOKENS) for each in SETTINGS}

    with ThreadPoolExecutor(STREAMS) as streams:

        def answers() -> dict[str, list[Answer]]:
            asked = {
                each: [
                    streams.submit(ask, edge, SETTINGS[each], tokens=TOKENS)
                    for _ in range(STREAMS)
                ]
                for each in SETTINGS
            }
            return {each: [one.result() for one in some] for each, some in asked.items()}

        def scale(count: int) -> None:
            left = urls[count:]
            name.write_text(" ".join(addresses[:count]))
            until(lambda: len(known(edge)) == count)
            for url in left:
                fleet.signal(url, signal.SIGTERM)

        with ThreadPoolExecutor(1) as loader:
            running = loader.submit(answers)
            scale(MANY)
            first = running.result()
            running = loader.submit(answers)
            until(lambda: sum(each["sessions"] > 0 for each in known(edge)) > 1)
            scale(1)
            second = running.result()

    for setting, expected in undisturbed.items():
        for answer in (*first[setting], *second[setting]):
            assert answer == expected
