"""What one does while an answer runs, or after something was refused, loses nothing."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, Request

from tests.guards import GUARD_S
from tests.page.conftest import SIZES, visiting
from tests.page.service import MARKDOWN
from tests.page.visiting import KEPT, Serving, Visit, origins_kept

NARROW = {"viewport": SIZES["narrow"], "has_touch": True}
LOCKED = """Object.defineProperty(window, "localStorage", {
  get() { throw new DOMException("closed to this page", "SecurityError"); },
});"""


def test_a_question_after_a_refused_one_is_shown(visit: Visit) -> None:
    visit.set(Tools="{")
    visit.ask("think of one", wait=False)
    visit.page.get_by_role("alert").wait_for()
    visit.set(Tools="")
    visit.ask("think of two", wait=False)
    visit.until_done(visit.answers.first)

    assert visit.questions == ["think of one", "think of two"]
    assert visit.answers.count() == 1
    assert visit.page.get_by_role("alert").count() == 0


def test_a_page_that_may_keep_nothing_works_and_says_so(
    chromium: Browser, serving: Serving
) -> None:
    serving.engine.restore()
    with visiting(chromium, serving, LOCKED) as visit:
        visit.page.click("#theme")
        visit.set(System_prompt="Be brief.")
        body = visit.sent("think of one")
        visit.ask("think of two")

        assert visit.evaluate("document.documentElement.dataset.theme") == "light"
        assert body["messages"][0]["content"] == "Be brief."
        assert visit.questions == ["think of one", "think of two"]
        assert "cannot keep this conversation" in visit.page.get_by_role("alert").inner_text()


@pytest.mark.parametrize("visit", [NARROW], indirect=True)
def test_the_list_can_be_used_while_an_answer_runs(visit: Visit) -> None:
    answer = visit.ask("a long one", wait=False)
    answer.locator(".text", has_text="Line 1").wait_for()

    visit.page.click("#menu")
    visit.page.locator(".entry .open").click()
    assert visit.page.locator("#sidebar").is_hidden()
    visit.page.click("#menu")
    visit.page.keyboard.press("Escape")
    assert visit.page.locator("#sidebar").is_hidden()
    shown = answer.locator(".text p").count()
    answer.locator(".text p").nth(shown + 3).wait_for()
    visit.page.keyboard.press("Escape")

    visit.until_done(answer)
    assert answer.locator(".state").inner_text() == "Stopped."


def test_a_name_is_not_cut_off_when_an_answer_ends(visit: Visit) -> None:
    visit.engine.pass_s = 0.2
    answer = visit.ask("Merge two lists", wait=False)
    visit.page.get_by_role("button", name="Rename Merge two lists").click()
    field = visit.page.get_by_label("Name of the conversation")
    field.fill("Sort")
    visit.engine.pass_s = 0.001
    visit.until_done(answer)
    visit.page.locator("#send").wait_for()
    field.press_sequentially("ing")
    field.press("Enter")

    assert visit.page.locator(".entry .open").all_text_contents() == ["Sorting"]


def test_the_service_is_not_asked_at_each_key_that_is_typed(visit: Visit) -> None:
    asked: list[str] = []

    def note(request: Request) -> None:
        if request.url.endswith("/status"):
            asked.append(request.url)

    visit.page.on("request", note)
    visit.page.click("#open-settings")
    visit.page.get_by_label("System prompt").press_sequentially("Be as brief as you can.")
    visit.page.get_by_label("API key").press_sequentially("k-4711-4711")
    asked_before = len(asked)
    with visit.page.expect_response("**/status"):
        visit.page.keyboard.press("Escape")

    assert asked_before <= 1  # it is asked every ten seconds, too


def test_a_reload_in_mid_answer_goes_on_with_it_in_every_tab(visit: Visit) -> None:
    visit.engine.pass_s = 1.0
    visit.ask("Merge two lists", wait=False).locator(".text", has_text="Walk over").wait_for()

    visit.page.reload()
    other = Visit(visit.context, visit.serving)
    other.open()
    for each in (visit, other):
        each.page.locator("#stop").wait_for()
    visit.engine.pass_s = 0.02

    for each in (visit, other):
        each.until_done(each.answers.first)
        turn = each.evaluate(KEPT)
        assert (turn["content"], turn["state"], "answer" in turn) == (MARKDOWN, "done", False)
        assert origins_kept(turn) == visit.engine.origins_of(MARKDOWN)
        (first, *_), (second, *_) = turn["race"]["passes"][:2]
        assert second - first > 0.9  # as they came, and not as they were read again
        assert each.questions == ["Merge two lists"]
    assert len(visit.engine.jobs) == 1


def test_stop_stops_an_answer_in_every_tab_that_goes_on_with_it(visit: Visit) -> None:
    visit.ask("a long one", wait=False).locator(".text", has_text="Line 3").wait_for()
    visit.page.reload()
    visit.page.locator(".text", has_text="Line 4").wait_for()
    other = Visit(visit.context, visit.serving)
    other.open()
    other.page.locator(".text", has_text="Line 5").wait_for()
    while visit.engine.closed.acquire(blocking=False):
        pass

    other.page.click("#stop")

    assert visit.engine.closed.acquire(timeout=GUARD_S)
    for each in (visit, other):
        each.until_done(each.answers.first)
        assert each.answers.first.locator(".state").inner_text() == "Stopped."
        assert "Line 3" in each.answers.first.locator(".text").inner_text()
    visit.page.reload()
    assert visit.answers.count() == 0


def test_an_answer_whose_connection_breaks_goes_on_where_it_was(visit: Visit) -> None:
    visit.engine.pass_s = 0.5
    answer = visit.ask("Merge two lists", wait=False)
    answer.locator(".text", has_text="Walk over").wait_for()

    visit.serving.cut()
    visit.engine.pass_s = 0.02
    visit.until_done(answer)

    assert (visit.kept()["content"], len(visit.engine.jobs)) == (MARKDOWN, 1)


def test_a_page_that_is_left_alone_asks_for_the_status_alone_and_none_while_hidden(
    visit: Visit,
) -> None:
    visit.page.clock.install()
    visit.open()
    visit.ask("think of one")
    visit.forgive()

    visit.page.clock.run_for(60_000)
    while len(visit.requested()) < 5:
        visit.page.wait_for_timeout(20)
    visit.page.wait_for_timeout(500)
    shown = visit.requested()
    visit.evaluate("() => Object.defineProperty(document, 'hidden', { get: () => true })")
    visit.page.clock.run_for(60_000)
    visit.page.wait_for_timeout(500)

    assert shown in ([f"{visit.serving.url}/status"] * count for count in (5, 6, 7))
    assert visit.requested() == shown
