"""The page on real models: both are SmolLM2, in services that are processes of their own."""

from __future__ import annotations

import json
import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from playwright.sync_api import Browser

from picospec.models.store import open_store
from tests.end_to_end.fleet import Fleet
from tests.page.conftest import visiting
from tests.page.visiting import Visit, origins_kept

pytestmark = pytest.mark.models

TEE = """
  const ask = window.fetch;
  window.fetch = async (...given) => {
    const answer = await ask(...given);
    if (!String(given[0]).includes("/chat/")) return answer;
    const [page, test] = answer.body.tee();
    window.heard = new Response(test).text();
    return new Response(page, answer);
  };
"""
"""Lets a test read the same stream as the page."""


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
    with visiting(chromium, running, TEE) as visit:
        visit.set(Limit_of_tokens="120", Seed="5", Temperature="1")
        yield visit


def chunks_of(body: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in body.split("\n\n") if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def test_the_colours_agree_with_the_totals_token_by_token(real: Visit) -> None:
    answer = real.ask("Count from one to thirty in words. Then count again.")

    characters: list[str] = []
    tokens: Counter[str] = Counter()
    chunks = chunks_of(real.evaluate("window.heard"))
    for told in (chunk.get("speculation", {}) for chunk in chunks[:-1]):
        tokens.update(told.get("tokens", {}) if "event" not in told else {})
        for length, origin in told.get("spans", ()):
            characters += [origin] * length

    last, kept = chunks[-1], real.kept()
    assert last["speculation"]["tokens"] == tokens == kept["race"]["counts"]
    assert sum(tokens.values()) == last["usage"]["completion_tokens"]
    assert origins_kept(kept) == characters
    assert len(characters) == len(kept["content"])
    pairs = "(all) => all.map((each) => [each.className, each.textContent])"
    marks = answer.locator(".text .t").evaluate_all(pairs)
    at = 0
    for name, text in marks:
        for word in text.split():
            at = kept["content"].index(word, at)
            assert name == f"t o-{characters[at]}"
            at += len(word)
    assert len(tokens) >= 2


def test_the_answer_is_proved_to_be_the_large_models_own(real: Visit) -> None:
    answer = real.ask("Write a haiku about light.")
    answer.get_by_role("button", name="Prove it").click()

    answer.locator(".proof.same").wait_for()


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
