"""The page serves those who use a keyboard, a screen reader, a phone, or want little motion."""

from __future__ import annotations

import pytest

from tests.page.conftest import SIZES
from tests.page.visiting import Visit

DARK = {"color_scheme": "dark"}
NARROW = {"viewport": SIZES["narrow"], "has_touch": True}


@pytest.mark.parametrize(
    "visit", [{}, DARK, NARROW], indirect=True, ids=["light", "dark", "narrow"]
)
def test_axe_finds_nothing_serious_in_any_view(
    visit: Visit, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id
    visit.picture(f"{name}-welcome")
    found = {"welcome": visit.serious()}
    answer = visit.ask("planted tie")
    visit.picture(f"{name}-answer")
    answer.get_by_role("button", name="Prove it").click()
    answer.locator(".tie").wait_for()
    found["answer"] = visit.serious()
    visit.picture(f"{name}-proof")
    for panel in ("status", "settings"):
        visit.page.click(f"#open-{panel}")
        visit.page.locator(f"#{panel} .panel-body").wait_for()
        found[panel] = visit.serious()
        visit.picture(f"{name}-{panel}")
        visit.page.keyboard.press("Escape")

    assert found == {"welcome": [], "answer": [], "status": [], "settings": []}


def test_everything_can_be_done_by_keyboard(visit: Visit) -> None:
    keyboard, focused = visit.page.keyboard, "document.activeElement.id"
    assert visit.evaluate(focused) == "question"
    keyboard.type("a long")
    keyboard.press("Shift+Enter")
    keyboard.type("one")
    assert visit.page.input_value("#question") == "a long\none"
    keyboard.press("Enter")
    visit.page.locator("#stop").wait_for()
    visit.answers.first.locator(".text .block").first.wait_for()
    keyboard.press("Escape")
    visit.until_done(visit.answers.first)
    assert visit.answers.first.locator(".state").inner_text() == "Stopped."

    reached = set()
    for _ in range(40):
        keyboard.press("Shift+Tab")
        reached.add(
            visit.evaluate(
                "document.activeElement.ariaLabel || document.activeElement.textContent"
            )
        )
        outline = visit.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or visit.evaluate(focused) in ("question", "")
    assert {"Copy", "Answer again", "Edit", "New conversation", "Settings"} <= reached

    visit.page.locator(".skip").first.focus()
    assert visit.page.locator(".skip").first.bounding_box()["y"] >= 0
    keyboard.press("Enter")
    assert visit.evaluate(focused) == "question"


def test_a_dialog_holds_the_focus_and_gives_it_back(visit: Visit) -> None:
    visit.page.focus("#open-settings")
    visit.page.keyboard.press("Enter")
    visit.page.locator("#settings[open]").wait_for()
    assert visit.evaluate("document.activeElement.closest('dialog').id") == "settings"
    visit.page.keyboard.press("Escape")

    assert visit.evaluate("document.activeElement.id") == "open-settings"


def test_a_screen_reader_hears_the_end_and_not_each_token(visit: Visit) -> None:
    visit.evaluate(
        """() => {
          window.heard = [];
          const live = document.querySelectorAll("[aria-live], [role=status], [role=alert]");
          for (const place of live) {
            new MutationObserver(() => window.heard.push(place.textContent))
              .observe(place, {childList: true, characterData: true, subtree: true});
          }
        }"""
    )
    answer = visit.ask("Merge two lists")
    visit.page.locator("#news", has_text="complete").wait_for()

    heard = [text for text in visit.evaluate("window.heard") if text]
    assert heard[0] == "The answer begins."
    assert heard[-1].startswith("The answer is complete.")
    assert len(heard) == 2
    assert answer.get_attribute("aria-busy") is None
    landmarks = ("banner", "navigation", "main")
    assert [visit.page.get_by_role(role).count() for role in landmarks] == [1, 1, 1]


@pytest.mark.parametrize("visit", [NARROW], indirect=True)
def test_a_phone_shows_all_without_scrolling_sideways(visit: Visit) -> None:
    visit.ask("Merge two lists")
    visit.answers.first.get_by_role("button", name="Prove it").click()
    visit.answers.first.locator(".proof.same").wait_for()

    assert visit.evaluate("document.documentElement.scrollWidth") <= 360
    assert (
        visit.page.locator("#conversation").evaluate("(e) => e.scrollWidth - e.clientWidth")
        == 0
    )
    assert visit.page.locator("#sidebar").is_hidden()
    visit.page.click("#menu")
    visit.page.get_by_role("button", name="Merge two lists", exact=True).wait_for()
    visit.page.keyboard.press("Escape")
    assert visit.page.locator("#menu").get_attribute("aria-expanded") == "false"


TOUCHED = """() => [...document.querySelectorAll("button, summary, input[type=search]")]
  .filter((each) => each.checkVisibility({visibilityProperty: true}))
  .map((each) => [each.ariaLabel || each.textContent, each.getBoundingClientRect()])
  .filter(([, {width, height}]) => Math.min(width, height) < 40).map(([name]) => name)"""
"""The names of what is seen, is to be touched, and is smaller than 40 pixels."""


@pytest.mark.parametrize("visit", [NARROW], indirect=True)
def test_a_phone_shows_the_welcome_from_its_top_with_the_models_and_room_to_touch(
    visit: Visit,
) -> None:
    page = visit.page
    page.locator("#models", has_text="small-1 drafts · words-1 judges").wait_for()
    assert page.locator("#models select").count() == 0
    head = page.locator(".welcome h2").bounding_box()
    assert head["y"] > page.locator(".top").bounding_box()["height"]
    small = {"welcome": visit.evaluate(TOUCHED)}
    visit.ask("Merge two lists")
    small["answer"] = visit.evaluate(TOUCHED)
    page.click("#menu")
    small["list"] = visit.evaluate(TOUCHED)
    page.keyboard.press("Escape")
    page.click("#open-settings")
    small["settings"] = visit.evaluate(TOUCHED)

    assert small == {"welcome": [], "answer": [], "list": [], "settings": []}


@pytest.mark.parametrize("visit", [{"reduced_motion": "reduce"}], indirect=True)
def test_nothing_moves_for_those_who_want_no_motion(visit: Visit) -> None:
    visit.engine.pass_s = 0.1
    visit.ask("Merge two lists", wait=False)
    visit.page.locator(".broken", has_text="and so on").wait_for()

    running = visit.evaluate("document.getAnimations().length")
    visit.page.keyboard.press("Escape")
    visit.until_done(visit.answers.first)
    assert running == 0


def test_the_switch_changes_the_colours_and_is_kept(visit: Visit) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light = visit.evaluate(paper)
    visit.page.click("#theme")
    visit.page.click("#theme")
    dark = visit.evaluate(paper)
    visit.page.reload()

    assert visit.evaluate(paper) == dark != light
