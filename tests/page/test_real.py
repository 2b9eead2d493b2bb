"""The page on real models: both are SmolLM2, in services that are processes of their own."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from playwright.sync_api import Browser

from local_models.store import open_store
from tests.end_to_end.fleet import Fleet
from tests.page.conftest import visiting
from tests.page.visiting import Visit

pytestmark = pytest.mark.models


@dataclass
class Running:
    """An edge and its verifier."""

    fleet: Fleet
    verifier: str
    url: str
    engine: None = None


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    open_store(os.environ).pull("smollm2", lambda what, done, total: None)
    fleet = Fleet()
    try:
        verifier = fleet.verifier()
        edge = fleet.edge(verifier, fill="never")  # on a quick host no draft may be in time
        fleet.until_ready(verifier, edge)
        yield Running(fleet, verifier, edge)
    finally:
        fleet.end()


@pytest.fixture
def real(chromium: Browser, running: Running) -> Iterator[Visit]:
    with visiting(chromium, running) as visit:
        visit.set(Limit_of_tokens="120", Seed="5", Temperature="1")
        yield visit


def test_the_answer_is_proved_to_be_the_large_models_own(real: Visit) -> None:
    answer = real.ask("Write a haiku about light.")
    answer.get_by_role("button", name="Prove it").click()

    answer.locator(".proof.same").wait_for()


@pytest.mark.long
def test_an_answer_goes_on_when_its_verifier_is_killed_and_comes_back(
    real: Visit, running: Running
) -> None:
    whole = real.ask("Write a story.").locator(".text").text_content()

    real.page.get_by_role("button", name="New conversation").click()
    answer = real.ask("Write a story.", wait=False)
    answer.locator(".text").get_by_text(re.compile(r".{40}", re.DOTALL)).first.wait_for()
    running.fleet.signal(running.verifier, signal.SIGKILL)
    running.fleet.verifier(url=running.verifier)
    real.until_done(answer)

    assert real.page.get_by_role("alert").count() == 0
    assert answer.locator(".text").text_content() == whole
