"""The page of services that are processes of their own: an edge and its verifier with SmolLM2,
and a verifier alone."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from playwright.sync_api import Browser

from bench.run.services import free_port
from local_models.store import open_store
from tests.end_to_end.fleet import Fleet
from tests.page.conftest import visiting
from tests.page.visiting import Visit
from tests.verifier.conftest import fake_command, serving
from tests.verifier.fake_target import SLOW, FakeTokenizer, said


@dataclass
class Running:
    """A service that is a process of its own, and a verifier behind it."""

    url: str
    verifier: str = ""
    fleet: Fleet | None = None
    engine: None = None


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    open_store(os.environ).pull("smollm2", lambda what, done, total: None)
    fleet = Fleet()
    try:
        verifier = fleet.verifier()
        edge = fleet.edge(verifier, fill="never")  # on a quick host no draft may be in time
        fleet.until_ready(verifier, edge)
        yield Running(edge, verifier, fleet)
    finally:
        fleet.end()


@pytest.fixture
def real(chromium: Browser, running: Running) -> Iterator[Visit]:
    with visiting(chromium, running) as visit:
        visit.set(Limit_of_tokens="120", Seed="5", Temperature="1")
        yield visit


@pytest.mark.models
def test_the_answer_is_proved_to_be_the_large_models_own(real: Visit) -> None:
    answer = real.ask("Write a haiku about light.")
    answer.get_by_role("button", name="Prove it").click()

    answer.locator(".proof.same").wait_for()


@pytest.mark.models
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


# The verifier's own page chats, and shows nothing of speculation, which it does without.

TOKENS = 12


@pytest.fixture
def alone(chromium: Browser) -> Iterator[Visit]:
    port = free_port()
    running = Running(f"http://127.0.0.1:{port}")
    with serving(fake_command(port), port, keys=""), visiting(chromium, running) as visit:
        yield visit


def test_the_verifiers_page_answers_without_speculative_parts(alone: Visit) -> None:
    page = alone.page
    page.locator(".welcome", has_text="The large model, alone.").wait_for()
    found = {"welcome": alone.serious()}

    streaming = alone.ask("Say it slowly", wait=False)
    streaming.locator(".text", has_text=text(3)).wait_for()
    page.click("#stop")
    alone.until_done(streaming)
    alone.set(Limit_of_tokens=str(TOKENS))
    answer = alone.ask("Say it slowly")

    assert streaming.locator(".state").inner_text() == "Stopped."
    assert answer.locator(".text").inner_text() == text(TOKENS)
    found["answer"] = alone.serious()
    for part in (".legend", ".lanes", ".passes", ".colours", ".prove"):
        assert not page.locator(part).locator("visible=true").count(), part
    figures = answer.locator(".figures dt").all_inner_texts()
    assert [figure.lower() for figure in figures] == ["tokens/s", "tokens"]
    page.click("#open-status")
    status = page.locator("#status .panel-body")
    status.get_by_text("a verifier", exact=True).wait_for()
    assert "Draft model" not in status.inner_text()
    found["status"] = alone.serious()
    assert found == {"welcome": [], "answer": [], "status": []}


def text(tokens: int) -> str:
    """Return the beginning of what the fake target says slowly."""
    spoken = (FakeTokenizer().piece(said([SLOW], at)) for at in range(tokens))
    return b"".join(spoken).decode()
