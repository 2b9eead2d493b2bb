"""The verifier's own page chats, and shows nothing of speculation, which it does without."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from playwright.sync_api import Browser

from bench.run.services import free_port
from tests.page.conftest import visiting
from tests.page.visiting import Visit
from tests.verifier.conftest import fake_command, serving
from tests.verifier.fake_target import SLOW, FakeTokenizer, said

TOKENS = 12


@dataclass
class Running:
    """A verifier with a fake target, in a process of its own."""

    url: str
    engine: None = None


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
