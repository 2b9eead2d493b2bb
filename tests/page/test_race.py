"""The page shows the race as the stream tells it, and proves what PicoSpec claims."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import Route

from tests.guards import GUARD_S
from tests.page.service import MARKDOWN
from tests.page.visiting import Visit, origins_kept

COLOURS = """(answer) => {
  const found = [];
  for (const mark of answer.querySelectorAll(".text .t")) {
    found.push([mark.className.replace("t ", ""), mark.textContent]);
  }
  return found;
}"""


def test_every_word_has_the_colour_of_who_had_it_first(visit: Visit) -> None:
    answer = visit.ask("Merge two lists")

    counted = visit.engine.origins_of(MARKDOWN)
    shown = answer.evaluate(COLOURS)

    assert origins_kept(visit.kept()) == counted
    assert {name for name, _ in shown} == {"o-draft", "o-ahead", "o-lookup", "o-target"}
    at = 0
    for name, text in shown:
        for word in re.findall(r"[A-Za-z]{2,}", text):
            at = MARKDOWN.index(word, at)
            assert name == f"o-{counted[at]}", (word, at)
            at += len(word)
    words = len(re.findall(r"[A-Za-z]{2,}", "".join(text for _, text in shown)))
    assert words > 70


def test_the_legend_agrees_with_the_totals(visit: Visit) -> None:
    answer = visit.ask("Merge two lists")

    shares = answer.locator(".legend li").all_inner_texts()
    tokens = int(
        answer.locator(".figures div", has_text="tokens").nth(1).locator("dd").inner_text()
    )

    counted = visit.engine.tokens_of(MARKDOWN)
    assert tokens == sum(counted.values())
    names = {"draft": "draft model", "ahead": "read ahead", "lookup": "prompt lookup"}
    names |= {"target": "cloud alone"}
    wanted = [f"{names[origin]}{round(100 * counted[origin] / tokens)} %" for origin in names]
    assert [share.replace("\n", "") for share in shares] == wanted


def test_the_chain_runs_ahead_and_breaks_visibly(visit: Visit) -> None:
    visit.engine.pass_s = 0.15
    answer = visit.ask("Merge two lists", wait=False)

    answer.locator(".ahead", has_text="or it").wait_for()
    answer.locator(".broken", has_text="and so on").wait_for()
    cursor = answer.locator(".cloud-cursor")
    cursor.wait_for()
    outputs = answer.locator(".lanes output").all_inner_texts()
    visit.page.keyboard.press("Escape")
    visit.until_done(answer)

    ours, theirs = (int(text.removesuffix(" tokens")) for text in outputs)
    assert 0 < theirs < ours
    assert cursor.count() == answer.locator(".ahead").count() == 0


def test_the_figures_stay_and_the_colours_can_be_hidden(visit: Visit) -> None:
    answer = visit.ask("Merge two lists")
    mark = answer.locator(".text .o-lookup").first
    toggle = answer.get_by_role("button", name="Who had it first")

    def underlined() -> str:
        return str(mark.evaluate("(mark) => getComputedStyle(mark).textDecorationStyle"))

    assert (toggle.get_attribute("aria-pressed"), underlined()) == ("true", "dashed")
    toggle.click()
    assert (toggle.get_attribute("aria-pressed"), underlined()) == ("false", "solid")

    figures = answer.locator(".figures").inner_text()
    for name in ("tokens/s", "as fast as the cloud alone", "of drafts accepted", "round trip"):
        assert name in figures
    passes = str(answer.locator("canvas").get_attribute("aria-label"))
    assert re.match(r"\d+ passes of the large model judged \d+ rows and accepted", passes)


def test_identical_answers_are_marked_so_with_the_time_saved(visit: Visit) -> None:
    answer = visit.ask("Merge two lists")

    answer.get_by_role("button", name="Prove it").click()
    answer.locator(".proof.same").wait_for()

    assert answer.locator(".verdict").inner_text() == "Identical, to the last character."
    saved = re.search(
        r"saved (\S+) s: (\S+) s instead of (\S+) s", answer.locator(".proof-top").inner_text()
    )
    assert saved is not None
    assert float(saved[1]) > 0
    with_edge, alone = visit.engine.jobs
    assert (with_edge.prompt, with_edge.seed) == (alone.prompt, alone.seed)
    assert (with_edge.watched, alone.watched) == (True, False)


@pytest.mark.parametrize(
    ("kind", "words"), [("tie", "A near-tie"), ("", "This is no near-tie")]
)
def test_a_planted_difference_is_found_and_explained(
    visit: Visit, kind: str, words: str
) -> None:
    answer = visit.ask(f"planted {kind}")

    answer.get_by_role("button", name="Prove it").click()
    answer.locator(".tie").wait_for()

    at = MARKDOWN.index("always") + 1
    assert f"differ from character {at} on" in answer.locator(".verdict").inner_text()
    assert answer.locator(".sides mark").all_inner_texts() == ["always", "usually"]
    assert answer.locator(".tie p").inner_text().startswith(words)
    rows = answer.locator(".tie tbody tr").all_inner_texts()
    shares = ("49.66 %", "49.16 %") if kind else ("95.12 %", "4.50 %")
    assert rows == [
        f'cloud alone\t" usually"\t{shares[0]}',
        f'with PicoSpec\t" always"\t{shares[1]}',
    ]


def test_a_difference_that_cannot_be_explained_says_why(visit: Visit) -> None:
    def refuse(route: Route) -> None:
        if "logprobs" in route.request.post_data_json:
            route.fulfill(status=429, json={"error": {"message": "too many requests"}})
        else:
            route.continue_()

    visit.page.route("**/picospec/direct/**", refuse)
    answer = visit.ask("planted")

    answer.get_by_role("button", name="Prove it").click()

    answer.locator(".proof-top", has_text="The service is busy (too many requests)").wait_for()
    assert "The texts differ" in answer.locator(".verdict").inner_text()
    assert answer.locator(".proof").get_attribute("aria-busy") is None


def test_a_proof_ends_with_esc_and_when_one_leaves_it(visit: Visit) -> None:
    answer = visit.ask("Merge two lists")
    visit.engine.pass_s = 0.5  # all of it would take minutes

    def begin() -> None:
        answer.get_by_role("button", name="Prove it").click()
        answer.locator(".sides pre", has_text="##").nth(1).wait_for()
        while visit.engine.closed.acquire(blocking=False):
            pass

    begin()
    visit.page.keyboard.press("Escape")
    answer.locator(".verdict", has_text="Stopped.").wait_for()
    assert visit.engine.closed.acquire(timeout=GUARD_S)

    begin()
    visit.page.get_by_role("button", name="New conversation").click()
    assert visit.engine.closed.acquire(timeout=GUARD_S)


def test_a_proof_that_fails_says_why(visit: Visit) -> None:
    answer = visit.ask("think")
    visit.engine.down = True

    answer.get_by_role("button", name="Prove it").click()

    answer.locator(".verdict", has_text="large model cannot be reached").wait_for()


@pytest.mark.parametrize(
    ("fallback", "by"),
    [
        ("draft", "the draft model m-1 has answered"),
        ("server", "another server has answered, with m-1"),
    ],
)
def test_an_answer_of_a_fallback_says_so_and_is_not_proved(
    visit: Visit, fallback: str, by: str
) -> None:
    chunk = {"model": "m-1", "system_fingerprint": f"{fallback}:m-1"}
    chunk |= {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]}
    body = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
    headers = {"x-picospec-fallback": fallback}

    def answered(route: Route) -> None:
        route.fulfill(body=body, headers=headers)

    visit.page.route("**/v1/chat/completions", answered)

    answer = visit.ask("Hello")

    assert by in answer.locator(".state").inner_text()
    assert answer.get_by_role("button", name="Prove it").count() == 0


def test_the_status_view_tells_of_models_verifiers_and_versions(visit: Visit) -> None:
    visit.page.click("#open-status")
    panel = visit.page.locator("#status")
    panel.get_by_text("small-1, 4 answers at a time").wait_for()

    text = panel.inner_text()
    for part in (
        "words-1",
        "coupled",
        "http://127.0.0.1:9000",
        "24.5 ms",
        "1.30",
        "protocol 3",
    ):
        assert part in text
    links = panel.locator(".links a").evaluate_all("(all) => all.map((a) => a.pathname)")
    assert links == ["/docs", "/metrics", "/health"]
    assert visit.page.locator("#models").inner_text() == "small-1 drafts · words-1 judges"


def test_a_verifier_that_is_away_is_said_at_once(visit: Visit) -> None:
    visit.engine.down = True
    visit.page.click("#open-status")

    visit.page.locator("#health.bad").wait_for()
    visit.page.get_by_text("not ready: the verifier is away").wait_for()
    assert visit.evaluate("document.activeElement.ariaLabel") == "Close"  # drawn again
    visit.page.keyboard.press("Escape")
    away = visit.page.locator("#away", has_text="The large model cannot be reached now")
    away.wait_for()
    assert visit.page.locator("#models").inner_text() == "small-1 drafts · words-1 judges"
    visit.engine.down = False
    visit.page.click("#open-status")
    visit.page.locator("#health.good").wait_for()
    assert visit.page.locator("#away").is_hidden()
