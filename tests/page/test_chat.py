"""The page chats as people expect, and keeps what was said in the browser only. It loses
nothing of that, whatever one does while an answer runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Request

from tests.guards import GUARD_S
from tests.page.conftest import SIZES, visiting
from tests.page.service import MARKDOWN
from tests.page.visiting import KEPT, Serving, Visit, origins_kept

TOOLS = '[{"type": "function", "function": {"name": "weather", "parameters": {}}}]'
NARROW = {"viewport": SIZES["narrow"], "has_touch": True}
LOCKED = """Object.defineProperty(window, "localStorage", {
  get() { throw new DOMException("closed to this page", "SecurityError"); },
});"""


def test_an_answer_streams_and_is_shown_as_markdown(visit: Visit) -> None:
    answer = visit.ask("Merge two lists", wait=False)
    answer.locator(".text .block").first.wait_for()
    visit.page.locator("#stop").wait_for()

    visit.until_done(answer)

    assert answer.locator("h2", has_text="Merging two sorted lists").count() == 1
    assert answer.locator(".text table td").count() == 4
    assert answer.locator(".text ol li").count() == 2
    code = MARKDOWN.split("```python\n")[1].split("```")[0]
    assert answer.locator(".code pre").text_content() == code
    assert answer.locator(".text a").get_attribute("rel") == "noopener noreferrer nofollow"
    assert visit.page.locator("#stop").is_hidden()


def test_an_answer_is_copied_as_it_was_written(visit: Visit) -> None:
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"])
    actions = visit.ask("Merge two lists").locator(".actions")

    actions.get_by_role("button", name="Copy").click()
    copied = actions.get_by_role("button", name="Copied")
    copied.click()
    copied.wait_for(state="detached", timeout=10_000)

    assert visit.evaluate("navigator.clipboard.readText()") == MARKDOWN


def test_again_replaces_the_answer_by_one_with_another_seed(visit: Visit) -> None:
    answer = visit.ask("think")
    answer.get_by_role("button", name="Answer again").click()
    visit.until_done(visit.answers.first)

    assert visit.answers.count() == 1
    first, second = visit.engine.jobs
    assert first.prompt == second.prompt
    assert first.seed != second.seed


def test_an_edited_question_is_asked_again_and_what_followed_goes(visit: Visit) -> None:
    visit.ask("think of one")
    visit.ask("think of two")

    visit.page.get_by_role("button", name="Edit").first.click()
    visit.page.get_by_label("Edit the question").fill("think of three")
    visit.page.keyboard.press("Enter")
    visit.until_done(visit.answers.first)

    assert visit.questions == ["think of three"]
    assert visit.engine.jobs[-1].prompt == visit.engine.words_of("user: think of three\n")


def test_conversations_are_kept_over_a_reload_renamed_and_deleted(visit: Visit) -> None:
    visit.ask("Merge two lists")
    text, figures = (
        visit.answers.first.locator(place).inner_text() for place in (".text", ".figures")
    )
    visit.page.get_by_role("button", name="New conversation").click()
    visit.ask("think")

    visit.page.reload()
    visit.page.get_by_role("button", name="Merge two lists", exact=True).click()
    visit.until_done(visit.answers.first)
    assert visit.answers.first.locator(".text").inner_text() == text
    assert visit.answers.first.locator(".figures").inner_text() == figures
    assert visit.answers.first.locator(".text .o-draft").count() > 5

    visit.page.get_by_role("button", name="Rename Merge two lists").click()
    visit.page.get_by_label("Name of the conversation").fill("Sorting")
    visit.page.keyboard.press("Enter")
    visit.page.get_by_role("button", name="Delete think").click()
    assert visit.page.locator(".entry .open").all_text_contents() == ["Sorting"]


def test_settings_are_sent_and_those_left_empty_are_not(visit: Visit) -> None:
    bare = visit.sent("think")
    visit.set(Temperature="0.5", Limit_of_tokens="3", Seed="7", System_prompt="Be brief.")
    body = visit.sent("think")

    assert bare.keys() == {"background", "messages", "seed", "stream", "stream_options"}
    assert bare["stream_options"] == {"include_usage": True, "include_speculation": True}
    assert (body["temperature"], body["max_tokens"], body["seed"]) == (0.5, 3, 7)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert "limit of tokens" in str(visit.answers.last.locator(".state").text_content())


def test_a_text_file_goes_into_the_question_as_a_fenced_block(
    visit: Visit, tmp_path: Path
) -> None:
    (tmp_path / "notes.md").write_text("A\n```\nfence\n```\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0")
    files = [str(tmp_path / name) for name in ("notes.md", "picture.png")]

    visit.page.set_input_files("#file", files)
    visit.page.locator(".chip", has_text="notes.md").wait_for()
    content = visit.sent("think about it")["messages"][0]["content"]

    assert content == "notes.md:\n````\nA\n```\nfence\n```\n\n````\n\nthink about it"
    assert "picture.png is no text file" in str(visit.page.locator("#notice").text_content())
    assert visit.page.locator(".user .file summary").text_content() == "notes.md"


def test_a_file_can_be_dropped_on_the_page(visit: Visit) -> None:
    visit.evaluate(
        """() => {
          const data = new DataTransfer();
          data.items.add(new File(["x = 1"], "x.py"));
          document.body.dispatchEvent(
            new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
        }"""
    )

    assert visit.page.locator(".chip").text_content() == "x.py"


def test_reasoning_and_calls_are_shown_as_such(visit: Visit) -> None:
    thoughtful = visit.ask("think")
    visit.set(Tools=TOOLS)
    calling = visit.ask("use the tool")

    assert thoughtful.locator(".thoughts").inner_text() == "Reasoning"
    assert thoughtful.locator(".thoughts div").text_content() == "Let me see."
    assert thoughtful.locator(".text").inner_text().strip() == "The answer is 42."
    assert "Calls weather with" in calling.locator(".call").inner_text()
    assert json.loads(calling.locator(".call pre").inner_text()) == {"city": "Oslo"}

    calling.locator(".call summary").click()
    calling.get_by_label("Result of weather").fill("Rain. think")
    with visit.page.expect_request("**/v1/chat/completions") as request:
        calling.get_by_role("button", name="Send the result").click()
    call, result = request.value.post_data_json["messages"][-2:]
    assert call["tool_calls"][0]["function"]["name"] == "weather"
    assert (result["role"], result["content"]) == ("tool", "Rain. think")
    visit.until_done(visit.answers.last)


def test_the_results_of_two_calls_are_sent_together(visit: Visit) -> None:
    visit.set(Tools=TOOLS)
    calls = visit.ask("use the tool twice").locator(".call")

    calls.nth(0).locator("summary").click()
    calls.nth(0).get_by_label("Result of weather").fill("Rain")
    calls.nth(0).get_by_role("button", name="Send the result").click()
    visit.page.get_by_text("Rain", exact=True).wait_for()
    calls.nth(1).locator("summary").click()
    calls.nth(1).get_by_label("Result of weather").fill("Sun")
    with visit.page.expect_request("**/v1/chat/completions") as request:
        calls.nth(1).get_by_role("button", name="Send the result").click()

    said = request.value.post_data_json["messages"]
    assert [message["content"] for message in said[-2:]] == ["Rain", "Sun"]
    assert [message["tool_call_id"] for message in said[-2:]] == [
        call["id"] for call in said[-3]["tool_calls"]
    ]
    visit.until_done(visit.answers.last)
    assert len(visit.engine.jobs) == 2


@pytest.mark.parametrize("lost", ["verifier", "edge"])
def test_what_is_lost_during_an_answer_is_said_and_the_next_try_succeeds(
    visit: Visit, lost: str
) -> None:
    answer = visit.ask("a long one", wait=False)
    answer.locator(".text", has_text="Line 1").wait_for()
    if lost == "verifier":
        visit.engine.down = True
    else:
        visit.serving.stop()
    answer.get_by_role("alert").wait_for()
    words = answer.get_by_role("alert").inner_text()
    kept = str(answer.locator(".text").text_content())

    if lost == "verifier":
        visit.engine.down = False
    else:
        visit.serving.start()
    visit.page.fill("#question", "think")
    answer.get_by_role("button", name="Try again").click()
    visit.page.locator("#stop").wait_for()
    visit.page.keyboard.press("Escape")
    visit.until_done(visit.answers.first)

    assert {"verifier": "large model cannot be reached", "edge": "connection broke"}[
        lost
    ] in words
    assert "Line 1" in kept
    assert visit.page.get_by_role("alert").count() == 0


# What one does while an answer runs, or after something was refused, loses nothing.


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
