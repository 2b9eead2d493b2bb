"""Nothing in an answer runs, no other host is asked, and keys are asked for in words."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.page.conftest import visiting
from tests.page.service import HOSTILE
from tests.page.visiting import Serving, Visit


def test_nothing_in_an_answer_runs_or_loads(visit: Visit) -> None:
    answer = visit.ask("hostile")
    text = answer.locator(".text")
    for link in text.locator("a").all():
        assert (link.get_attribute("href") or "https://").startswith("https://")

    assert visit.evaluate("typeof window.hacked") == "undefined"
    assert "Still here." in text.inner_text()
    assert "<script>window.hacked = 1</script>" in text.inner_text()
    active = ("script", "img", "iframe", "form", "style", "object", "base", "meta", "input")
    for tag in (*active, "svg:not(.action svg)"):
        assert text.locator(tag).count() == 0, tag
    attributes = "(root) => [...root.querySelectorAll('*')].flatMap((e) => [...e.attributes])"
    names = set(text.evaluate(f"{attributes.removesuffix(')')}.map((a) => a.name))"))
    assert not any(name.startswith("on") or name == "style" for name in names)
    assert text.locator("xpath=//body").count() == 0


def test_the_policy_stops_what_would_get_through(visit: Visit) -> None:
    """A negative control: the policy alone stops scripts, styles, images and requests."""
    broken = visit.evaluate(
        """async () => {
          const seen = [];
          document.addEventListener("securitypolicyviolation",
            (event) => seen.push(event.effectiveDirective));
          const add = (tag, fields) =>
            document.body.append(Object.assign(document.createElement(tag), fields));
          add("img", {src: "https://evil.example/x.png"});
          add("style", {textContent: "body { color: red }"});
          await fetch("https://evil.example/").catch(() => {});
          try { document.body.innerHTML += "<b>x</b>"; } catch { seen.push("trusted types"); }
          await new Promise((done) => setTimeout(done, 100));
          return seen;
        }"""
    )
    visit.forgive()

    for directive in ("img-src", "style-src-elem", "connect-src", "trusted types"):
        assert directive in broken


def test_a_hostile_question_title_and_file_are_only_text(visit: Visit) -> None:
    visit.ask(HOSTILE.splitlines()[1] + " think")

    assert visit.page.locator(".said").inner_text().startswith("<img src=x")
    assert visit.page.locator("#sidebar img").count() == 0
    assert visit.evaluate("typeof window.hacked") == "undefined"


@pytest.fixture
def locked(chromium: Browser) -> Iterator[Visit]:
    """A service that asks for a key."""
    service = Serving(api_keys=["k-4711"])
    service.start()
    with visiting(chromium, service) as visit:
        yield visit
    service.stop()


def test_a_wrong_key_is_said_with_what_to_do_and_the_right_one_works(locked: Visit) -> None:
    answer = locked.ask("think", wait=False)
    alert = answer.get_by_role("alert")
    alert.wait_for()
    words = alert.inner_text()
    alert.get_by_role("button", name="Open the settings").click()
    locked.page.get_by_label("API key").fill("wrong")
    locked.page.keyboard.press("Escape")
    again = locked.ask("think", wait=False)
    again.get_by_role("alert").wait_for()
    locked.set(API_key="k-4711")
    right = locked.ask("think")

    assert "asks for an API key" in words
    assert right.locator(".text").inner_text().strip() == "The answer is 42."
    locked.page.locator("#health.good").wait_for()
    stored = locked.evaluate(
        "Object.entries(localStorage).filter(([, v]) => v.includes('k-4711'))"
    )
    assert [name for name, _ in stored] == ["picospec.settings"]
